"""Where a run computes, and in which precision: the run's own keys in the terms of LeRobot and accelerate."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator

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


def accelerator_of(policy: Any, run: Run) -> Accelerator:
    """As LeRobot's train script makes it, with the run's precision where the policy has no ``dtype`` of its own.

    ``policy``: its ``PreTrainedConfig``.
    """
    precision = run.config.get("precision", "fp32")
    mixed = MIXED.get(getattr(policy, "dtype", None) or "")
    if not hasattr(policy, "dtype") and (precision == "bf16" or policy.use_amp):
        mixed = "bf16" if policy.device == "cpu" or precision == "bf16" else "fp16"
    if mixed == "fp16":
        raise ConfigError(
            "the loss scaler of float16 is no part of a checkpoint here",
            where="precision",
            do="Use precision: bf16 in place of trainer.policy.use_amp, or dtype: bfloat16 where the policy has a dtype",
        )
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    return Accelerator(step_scheduler_with_optimizer=False, mixed_precision=mixed, cpu=policy.device == "cpu")
