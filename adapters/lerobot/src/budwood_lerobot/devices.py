"""Where a run computes, and in which precision: the run's own keys in the terms of LeRobot and accelerate."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from budwood.api import ConfigError, Run

MIXED = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}
"""A policy's own ``dtype`` -> accelerate's mixed precision, as in LeRobot's train script."""


def check_single_process() -> None:
    """:raises ConfigError: a launcher has started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"several processes do not work yet, and a launcher has started {os.environ['WORLD_SIZE']} of them",
            where="trainer",
            do="Start the run with budwood run alone, without torchrun or accelerate launch",
        )


def device_of(device: str) -> str:
    """``cpu``, ``cuda``, ``mps`` or ``xpu``. Which GPU is used is said outside, by what is visible.

    :raises ConfigError: a device that PyTorch does not see, or one GPU by number.
    """
    if ":" in device:
        raise ConfigError(
            f"accelerate chooses among the GPUs it sees, and {device} is one by number",
            where="device",
            do="Use device: cuda, and make one GPU visible with CUDA_VISIBLE_DEVICES",
        )
    found = torch.accelerator.current_accelerator(check_available=True)
    there = "cpu" if found is None else found.type
    if device not in ("auto", "cpu", there):
        raise ConfigError(f"PyTorch sees no {device} device here", where="device", do="Use device: cpu or auto")
    return there if device == "auto" else device


def check_precision(precision: str, policy: Any) -> None:
    """``policy``: its ``PreTrainedConfig``, or None for one of a plugin.

    :raises ConfigError: bfloat16 is asked for where only the policy's own ``dtype`` decides.
    """
    if precision == "bf16" and getattr(policy, "dtype", None) != "bfloat16":
        whose = "a plugin's policy" if policy is None else policy.type
        raise ConfigError(
            f"the precision of {whose} is its own matter, and bf16 would change nothing",
            where="precision",
            do="Set trainer.policy.dtype: bfloat16 where the policy has a dtype; otherwise use fp32, or tf32 on a GPU",
        )


def accelerator_of(policy: Any, run: Run) -> Accelerator:
    """As LeRobot's train script makes it, with the run's precision where the policy has no ``dtype`` of its own.

    ``policy``: its ``PreTrainedConfig``.
    """
    precision = run.config.get("precision", "fp32")
    mixed = MIXED.get(getattr(policy, "dtype", None) or "float32", "no")
    if not hasattr(policy, "dtype") and (precision == "bf16" or policy.use_amp):
        mixed = "bf16" if policy.device == "cpu" or precision == "bf16" else "fp16"
    if hasattr(policy, "dtype"):
        check_precision(precision, policy)
    if mixed == "fp16":
        raise ConfigError(
            "the loss scaler of float16 is no part of a checkpoint here",
            where="precision",
            do="Use precision: bf16 in place of trainer.policy.use_amp, or dtype: bfloat16 where the policy has a dtype",
        )
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # as LeRobot's train script has it
    try:
        return Accelerator(
            step_scheduler_with_optimizer=False,
            mixed_precision=mixed,
            cpu=policy.device == "cpu",
            kwargs_handlers=[unused],
        )
    except ValueError as error:
        raise ConfigError(
            f"accelerate keeps one device and one precision for a whole process, and this one began with others than "
            f"{policy.device} and {mixed}: {' '.join(str(error).split())}",
            where="precision",
            do="Start this run in a process of its own",
        ) from error
