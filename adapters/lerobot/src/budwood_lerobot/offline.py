"""Learning from a dataset: what can be bound, and from a run's configuration to LeRobot's building blocks."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from budwood.api import Capabilities, ConfigError, Contributions, Run, Seam
from budwood_lerobot.config import DatasetConfig, EnvConfig, OfflineConfig
from budwood_lerobot.devices import accelerator_of, check_single_process, device_of
from budwood_lerobot.native import flat, train_config, without_arguments


def capabilities() -> Capabilities:
    """What an offline run can bind, and for everything else the reason it cannot."""
    rows = "it imitates the actions of a dataset: nothing is collected, and nothing is scored"
    words = "its policy acts on robots and writes no completions"
    seams = {
        "build_dataset": Seam("LeRobotDataset, before the policy is made"),
        "build_model": Seam("PreTrainedPolicy, before the optimiser is made"),
        "loss_terms": Seam("policy.forward, wrapped"),
        "callbacks": Seam("own loop: between two optimiser steps"),
        "evaluators": Seam("own loop: between two optimiser steps"),
    }
    refused = {
        "build_env": "its environments are LeRobot's: register an EnvConfig, and name its type in env.type",
        "build_policy": "a policy learns by its own forward(batch): trainer.policy names one, build_model brings or wraps it",
        "objective": "the objective is inside the policy's forward: add a loss term, or bring another policy",
        "rollout": words,
        "decoder": words,
        "completion_rewards": words,
        "completion_advantage": words,
        "reward_terms": rows,
        "reward_combination": rows,
        "advantage": rows,
    }
    return Capabilities("LeRobot offline", seams, refused, frozenset(("policy", "batch")), one_process="")


def build(run: Run, contributions: Contributions) -> Any:
    """Dataset, policy, processors, optimiser and schedule of a run, made in LeRobot's own order, and their trainer."""
    from lerobot.utils.random_utils import set_seed

    from budwood_lerobot.blocks import assembled, datasets_of, policy_of
    from budwood_lerobot.trainer import HeldOutTrainer, OfflineTrainer, may_reset

    if not run.processes.several:
        check_single_process()
    config: OfflineConfig = run.trainer
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    pipeline = pipeline_of(run, config, given=contributions.wrap_dataset is not None)
    accelerator = accelerator_of(pipeline.policy, run)
    set_seed(run.seed, accelerator)
    datasets = datasets_of(pipeline, contributions, named=run.config.get("dataset") is not None)
    make = partial(policy_of, pipeline, datasets[0].meta, contributions)
    policy = make()
    env = None if run.config.get("env") is None else EnvConfig.model_validate(run.config["env"])
    evaluation = run.config.get("evaluation", {})
    plays = evaluation.get("episodes") != 0
    notes = checked_fit(policy.config, pipeline.rename_map, datasets[0].meta, env) if env and plays else []
    blocks = assembled(pipeline, accelerator, policy, *datasets, contributions.loss_terms, run.processes)
    if not run.processes.first:  # noise of its own for rows of its own
        set_seed(int(np.random.SeedSequence([run.seed, run.processes.rank]).generate_state(1)[0]))
    cls = HeldOutTrainer if env is None else OfflineTrainer
    return cls(
        blocks,
        total_steps=config.total_steps,
        fresh=make,
        env=env,
        may_reset=may_reset(contributions),
        evaluation_seed=evaluation.get("seed", 0),
        evaluated=(evaluation.get("every") or config.total_steps + 1) <= config.total_steps,
        notes=notes,
    )


def checked_fit(policy: Any, rename_map: Mapping[str, str], meta: Any, env: EnvConfig) -> list[str]:
    """What a person should know of pictures: their sizes in the dataset and in the environment.

    :raises ConfigError: the policy, with the features that its dataset has given it, cannot play in the environment.
    """
    from lerobot.utils.feature_utils import dataset_to_policy_features

    from budwood_lerobot.features import REMEDY, misfit, other_sizes, seen_in, unseen

    native = env.native()
    rename = rename_map if policy.pretrained_path is not None else {}
    found = misfit(policy, policy.input_features, policy.output_features, native)
    seen = None if found else seen_in(env, rename)
    if seen is not None:
        found = unseen(policy, native, seen)
    if found:
        raise ConfigError(found, where="env", do=REMEDY)
    rows = {rename.get(name, name): it for name, it in dataset_to_policy_features(meta.features).items()}
    return [
        f"{told}: a policy may do worse there than on what it learns from." for told in other_sizes(rows, seen or {})
    ]


def pipeline_of(run: Run, config: OfflineConfig, given: bool) -> Any:
    """LeRobot's ``TrainPipelineConfig`` of this run, validated by LeRobot. ``given``: a plugin may bring the dataset."""
    section = run.config.get("dataset")
    if section is None and not given:
        raise ConfigError(
            "an offline run has no dataset to learn from",
            where="dataset",
            do="Write dataset: {repo_id: NAME, root: FOLDER}, or activate a plugin with build_dataset",
        )
    made = train_config(config.args)
    if section is not None:
        made.dataset = DatasetConfig.model_validate(section).native()
    if run.config.get("env") is not None:
        made.env = EnvConfig.model_validate(run.config["env"]).native()
    made.policy = config.policy.native(device_of(run.device))
    made.seed, made.steps, made.job_name = run.seed, config.total_steps, run.name
    made.env_eval_freq = 0
    made.output_dir = (run.folder or Path(tempfile.gettempdir())) / "lerobot"
    try:
        with without_arguments():
            made.validate()
    except (ValueError, FileExistsError) as error:
        raise ConfigError(f"LeRobot refuses the configuration: {flat(error)}", where="trainer") from error
    return made
