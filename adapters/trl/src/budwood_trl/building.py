"""From a run's configuration and contributions to a trainer of TRL: rows, model, rewards, and the class that takes them."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets.utils import logging as hf_datasets
from transformers.utils import logging as tf_logging

from budwood.api import ConfigError, Contributions, Processes, Run
from budwood_trl import models
from budwood_trl.completions import WithAdvantages, knowingly, rollout_func
from budwood_trl.config import DatasetConfig, TrainerConfig
from budwood_trl.data import datasets_of
from budwood_trl.dealing import sizes_among
from budwood_trl.families import FAMILIES, Family
from budwood_trl.losses import WithLosses
from budwood_trl.rewards import batch_width, columns_of
from budwood_trl.trainer import TRLTrainer, may_reset


def build(run: Run, contributions: Contributions) -> TRLTrainer:
    """Rows, model, rewards and trainer of a run."""
    if not run.processes.several:
        one_process("trainer", "Start the run with budwood launch")
    config: TrainerConfig = run.trainer
    family = FAMILIES[config.algo]
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with quietly():
        return _build(run, contributions, config, family)


def one_process(where: str, do: str) -> None:
    """:raises ConfigError: a launcher has started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"several processes do not work yet, and a launcher has started {os.environ['WORLD_SIZE']} of them",
            where=where,
            do=f"{do}, without torchrun or accelerate launch",
        )


def _build(run: Run, contributions: Contributions, config: TrainerConfig, family: Family) -> TRLTrainer:
    arguments: dict[str, Any] = {"args": native_config(family, config, run)}
    train, held_out = datasets_of(DatasetConfig.model_validate(run.config["dataset"]), family, contributions)
    arguments |= {"train_dataset": train, "eval_dataset": held_out}
    if config.rewards and isinstance(train[0]["prompt"], str):
        raise ConfigError(
            f"{', '.join(config.rewards)} of TRL read conversations, and the prompts of the rows are text",
            where="trainer.rewards",
            do='Write prompts as [{"role": "user", "content": ...}]',
        )
    columns = None
    if family.generates:
        columns = columns_of(contributions, config.rewards, family.trainer, batch_width(arguments["args"]))
        arguments["reward_funcs"] = columns.functions
        arguments["args"].reward_weights = columns.weights
    roll = rollout_func(contributions.rollout, contributions.decoder)
    if roll is not None:
        arguments["rollout_func"] = roll
    scores = config.algo == "reward"
    if config.peft is not None:
        arguments["peft_config"] = models.lora(config.peft, scores=scores)
    transformers.set_seed(run.seed)  # a head that is missing from the folder is drawn at random
    model, arguments["processing_class"] = models.load(config.model, scores=scores)
    arguments["model"] = model if contributions.wrap_model is None else contributions.wrap_model(model)
    try:
        with knowingly(), tempfile.TemporaryDirectory(prefix="budwood-") as instead:
            arguments["args"].output_dir = instead  # made by the constructor, before the run has its folder
            native = extended(family.load(), contributions)(**arguments)
    except (AssertionError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{family.trainer} refuses its arguments: {error}", where="trainer.args") from error
    native.remove_callback(transformers.PrinterCallback)
    native.args.output_dir = str((run.folder or Path(tempfile.gettempdir())) / "trl")
    evaluation = run.config.get("evaluation", {})
    every = evaluation.get("every")
    return TRLTrainer(
        native,
        columns,
        total_steps=config.total_steps,
        may_reset=may_reset(contributions),
        evaluation_seed=evaluation.get("seed", 0),
        unevaluated=held_out is None and every is not None and every <= config.total_steps,
        processes=run.processes,
    )


@contextmanager
def quietly() -> Iterator[None]:
    """Without the bars of transformers and datasets: a run has one line of its own."""
    bars = ((tf_logging, tf_logging.is_progress_bar_enabled()), (hf_datasets, hf_datasets.is_progress_bar_enabled()))
    for library, _ in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, enabled in bars:
            if enabled:
                library.enable_progress_bar()


def extended(cls: type[Any], contributions: Contributions) -> type[Any]:
    """``cls`` itself, or one subclass with what the contributions need in front of it."""
    bases: list[type[Any]] = []
    namespace: dict[str, Any] = {}
    if contributions.completion_advantage is not None:
        bases.append(WithAdvantages)
        namespace["_advantage"] = contributions.completion_advantage
    if contributions.loss_terms:
        bases.append(WithLosses)
        namespace["_loss_terms"] = contributions.loss_terms
    if not bases:
        return cls
    return type(cls.__name__, (*bases, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__, **namespace})


def native_config(family: Family, config: TrainerConfig, run: Run) -> Any:
    """TRL's configuration object: the run's own settings, defaults that work on this device, then ``trainer.args``."""
    on_cpu = _on_cpu(run.device, run.processes)
    precision = run.config.get("precision", "fp32")
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    defaults = {"gradient_checkpointing": not on_cpu, "bf16": precision == "bf16", "logging_steps": 1}
    ours = {
        "output_dir": tempfile.gettempdir(),
        "max_steps": config.total_steps,
        "seed": run.seed,
        "use_cpu": on_cpu,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    if on_cpu:
        defaults["dataloader_pin_memory"] = False
    cls = family.load_config()
    fields = {item.name: item.default for item in dataclasses.fields(cls)}
    same = family.algo == "kto"  # which is not resumed in another number; one process may evaluate it as it is
    args = config.args if same else sizes_among(config.args, fields, run.begun_with, run.processes.count)
    try:
        return cls(**{**defaults, **args, **{name: value for name, value in ours.items() if name in fields}})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{family.config} refuses its fields: {error}", where="trainer.args") from error


def _on_cpu(device: str, processes: Processes) -> bool:
    """Whether to stay on the CPU. Which GPU is used is said outside, by what is visible.

    :raises ConfigError: a device that PyTorch does not see, one GPU by number, or one for two processes.
    """
    if ":" in device:
        raise ConfigError(
            f"accelerate chooses among the GPUs it sees, and {device} is one by number",
            where="device",
            do="Use device: cuda, and make one GPU visible with CUDA_VISIBLE_DEVICES",
        )
    found = torch.cuda.is_available() or torch.backends.mps.is_available()
    if device not in ("auto", "cpu") and not found:
        raise ConfigError(f"PyTorch sees no {device} device here", where="device", do="Use device: cpu or auto")
    if device != "cpu" and torch.cuda.is_available() and processes.several:
        mine = torch.cuda.get_device_properties(processes.local_rank % torch.cuda.device_count())
        gpus = len(set(processes.gather(str(mine.uuid))))
        if gpus < processes.count:
            raise ConfigError(
                f"accelerate gives every process a GPU of its own: here are {processes.count} processes and {gpus} "
                f"GPU{'s' * (gpus > 1)}",
                where="device",
                do=f"Start {gpus} process{'es' * (gpus > 1)}, or a new run with device: cpu",
            )
    return device == "cpu" or not found
