"""TRL's trainers by name, and what budwood can bind to each.

Importing this module imports none of them: classes are looked up when a run needs one.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from budwood.api import Capabilities, Seam

Algo = Literal["grpo", "rloo", "dpo", "sft", "reward", "kto"]

_OURS = "budwood writes checkpoints: use the section checkpoint"
_EVERY = "budwood says when: use the section evaluation"
_HUB = "a run publishes nothing: budwood export writes a folder that you can push"
_SHARDS = "a run is one process, and its checkpoint holds whole parameters: several processes do not work yet"
OWNED: Mapping[str, str] = {
    "output_dir": "a run has a folder of its own",
    "max_steps": "write it beside algo, as trainer.total_steps",
    "num_train_epochs": "a run is as long as trainer.total_steps",
    "seed": "the run has one seed: use the top-level key seed",
    "use_cpu": "the run has one device: use the top-level key device",
    "fp16": "its loss scaler is no part of a checkpoint here: use bf16",
    "tf32": "the run has one precision: use the top-level key precision",
    "reward_weights": "a weight belongs to its reward: plugins declare it, trainer.rewards names those of TRL's own",
    "report_to": "metrics go to the journal and to MLflow: use the section tracking",
    "run_name": "the run has one name: use the top-level key name",
    "disable_tqdm": "budwood shows the progress",
    **dict.fromkeys(("save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node"), _OURS),
    **dict.fromkeys(("resume_from_checkpoint", "load_best_model_at_end", "ignore_data_skip"), _OURS),
    **dict.fromkeys(("restore_callback_states_from_checkpoint", "enable_jit_checkpoint"), _OURS),
    **dict.fromkeys(("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "do_eval"), _EVERY),
    **dict.fromkeys(("do_train", "do_predict"), "a run trains, and evaluates as its section evaluation says"),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo"), _HUB),
    **dict.fromkeys(("hub_always_push", "hub_revision", "log_completions_hub_repo"), _HUB),
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "parallelism_config"), _SHARDS),
}
"""Fields of TRL's configurations that a run may not set, and why."""

TOKEN_INPUTS = frozenset(("policy", "batch", "log_prob", "entropy", "mask", "advantages"))
BATCH_INPUTS = frozenset(("policy", "batch"))


@dataclass(frozen=True)
class Family:
    """One trainer: its class and its configuration's, which columns its rows need, and what of it can be extended.

    ``generates``: it writes completions and learns from their rewards. ``rolls_out``: its constructor takes a rollout.
    """

    algo: Algo
    trainer: str
    columns: tuple[str, ...]
    generates: bool = False
    rolls_out: bool = False

    @property
    def config(self) -> str:
        return self.trainer.replace("Trainer", "Config")

    def load(self) -> type[Any]:
        cls: type[Any] = getattr(importlib.import_module(f"trl.trainer.{self.algo}_trainer"), self.trainer)
        return cls

    def load_config(self) -> type[Any]:
        cls: type[Any] = getattr(importlib.import_module(f"trl.trainer.{self.algo}_config"), self.config)
        return cls


FAMILIES: Mapping[str, Family] = {
    family.algo: family
    for family in (
        Family("grpo", "GRPOTrainer", ("prompt",), generates=True, rolls_out=True),
        Family("rloo", "RLOOTrainer", ("prompt",), generates=True),
        Family("dpo", "DPOTrainer", ("chosen", "rejected")),
        Family("sft", "SFTTrainer", ("text", "messages", "prompt", "input_ids")),
        Family("reward", "RewardTrainer", ("chosen", "rejected")),
        Family("kto", "KTOTrainer", ("prompt", "completion", "label")),
    )
}


def of_class(cls: type) -> Family | None:
    """The family whose class is ``cls`` or the nearest base of it."""
    known = {family.trainer: family for family in FAMILIES.values()}
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "trl" and base.__name__ in known:
            return known[base.__name__]
    return None


def argument_problems(family: Family, args: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every key of ``args`` that the configuration has no field for, or that budwood owns, and a sentence why."""
    if not args:
        return []
    allowed = [item.name for item in dataclasses.fields(family.load_config()) if item.init and item.name not in OWNED]
    problems = []
    for key in args:
        if key in OWNED:
            problems.append((key, f"{key!r} cannot be set here: {OWNED[key]}"))
        elif key not in allowed:
            problems.append((key, f"{family.config} has no field {unknown(key, allowed)}"))
    return problems


def unknown(name: str, known: Sequence[str]) -> str:
    """The name, and the one that may have been meant."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


def capabilities(family: Family) -> Capabilities:
    """What a run that builds this trainer can bind, and for everything else the reason it cannot."""
    name = family.trainer
    seams = {
        "loss_terms": Seam(f"{name}.compute_loss, extended"),
        "build_dataset": Seam("train_dataset and eval_dataset, before the constructor"),
        "build_model": Seam("model, before the constructor"),
        "callbacks": Seam("TrainerCallback: between two optimiser steps"),
        "evaluators": Seam("TrainerCallback: between two optimiser steps"),
    }
    refused = {
        "build_env": f"{name} reads rows of a dataset and steps no environment",
        "build_policy": "its policy is a language model: trainer.model names it, build_model brings or wraps it",
        "objective": "trainer.args.loss_type chooses the objective, and replacing it would drop TRL's metrics of it: "
        "add a loss term",
        "advantage": f"{name} has no time steps and no values; completion_advantage scores completions",
    }
    if family.generates:
        seams |= {
            "completion_rewards": Seam("reward_funcs"),
            "reward_terms": Seam(
                "reward_funcs: a completion is an episode of one step, its infos the completion rewards"
            ),
            "reward_combination": Seam("reward_weights"),
            "completion_advantage": Seam(f"{name}._generate_and_score_completions, extended", "B"),
        }
    else:
        reason = f"{name} learns from the completions of its rows and writes none"
        refused |= dict.fromkeys(("completion_rewards", "reward_terms", "reward_combination"), reason)
        refused["completion_advantage"] = reason
    for kind in ("rollout", "decoder"):
        if family.rolls_out:
            seams[kind] = Seam("rollout_func", "B")
        elif family.generates:
            refused[kind] = f"the constructor of {name} takes no rollout_func: use GRPO"
        else:
            refused[kind] = refused["completion_rewards"]
    inputs = TOKEN_INPUTS if family.generates else BATCH_INPUTS
    return Capabilities(name, seams, refused, inputs, one_process="")
