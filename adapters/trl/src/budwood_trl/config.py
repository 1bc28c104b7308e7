"""The sections ``trainer`` and ``dataset`` of a run on TRL."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from budwood.api import Config, first_pass, refuse
from budwood_trl.families import FAMILIES, Algo, argument_problems, unknown

OWN = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward")
"""TRL's reward functions that take no settings."""


class TrainerConfig(Config):
    """``args`` are the fields of TRL's own configuration, by their own names; ``peft`` those of ``LoraConfig``."""

    kind: Literal["trl"]
    algo: Algo
    model: str = Field(min_length=1, description="a folder, an id on the hub, or a short name such as smollm2")
    total_steps: int = Field(gt=0, description="optimiser steps")
    args: dict[str, Any] = Field(default_factory=dict, description="fields of TRL's configuration of this trainer")
    peft: dict[str, Any] | None = Field(None, description="fields of LoraConfig; null: every parameter is trained")
    rewards: dict[str, float] = Field(
        default_factory=dict, description="TRL's own reward functions: name and weight; plugins bring others"
    )
    threads: int | None = Field(
        1, gt=0, description="torch's CPU threads: small models gain little from more; null leaves torch's own choice"
    )

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        family = FAMILIES[self.algo]
        problems: list[tuple[tuple[str, ...], str]] = []
        if self.rewards and not family.generates:
            reason = f"rewards are for grpo and rloo: {family.trainer} writes no completions"
            problems.append((("rewards",), reason))
        problems += [
            (("rewards", name), f"TRL has no reward without settings called {unknown(name, OWN)}")
            for name in self.rewards
            if name not in OWN
        ]
        if not first_pass(info):
            problems += [(("args", key), reason) for key, reason in argument_problems(family, self.args)]
        if problems:
            refuse(problems)
        return self


class DatasetConfig(Config):
    """Rows from a JSON Lines or Parquet file, or a folder that ``datasets`` has saved."""

    train: str | None = Field(None, description="file or folder to train on; null: a plugin brings it")
    eval: str | None = Field(None, description="file or folder to evaluate on; null: a plugin's, or no evaluation")
    limit: int | None = Field(None, gt=0, description="at most so many training rows, the first of the file")
