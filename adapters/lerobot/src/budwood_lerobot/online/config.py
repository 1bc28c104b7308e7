"""The section ``trainer`` of a run that learns from episodes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from budwood.api import Config
from budwood_lerobot.config import PolicyConfig

Normalisation = Literal["minibatch", "rollout", "none"]


class OnlineConfig(Config):
    """Everything counts in decisions: one for each call of the policy, whatever number of steps its chunk executes."""

    kind: Literal["lerobot"]
    algo: Literal["online"] = Field(description="online: learn from episodes")
    policy: PolicyConfig | None = Field(
        None, description="a policy of LeRobot that a plugin wraps; null: a plugin brings one"
    )
    total_steps: int = Field(gt=0, description="decisions of all environments together")
    rollout: int = Field(
        64, gt=0, description="decisions of each environment between two updates; with groups, of an episode at most"
    )
    epochs: int = Field(4, gt=0)
    minibatch: int = Field(64, gt=0, description="decisions")
    learning_rate: float = Field(3e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    gamma: float = Field(0.99, ge=0, le=1, description="per decision")
    gae_lambda: float = Field(0.95, ge=0, le=1)
    clip: float = Field(0.2, gt=0)
    vf_coef: float = Field(0.5, ge=0)
    ent_coef: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(0.5, gt=0)
    target_kl: float | None = Field(None, gt=0, description="an update ends beyond 1.5 times this; of whole decisions")
    critic_warmup: int = Field(0, ge=0, description="first updates that move the critic alone")
    advantage: Literal["gae", "group"] = Field(
        "gae", description="group: relative to episodes that began from the same state, without a critic"
    )
    group_size: int | None = Field(None, ge=2, description="environments that begin from the same state; with group")
    normalize_advantage: Normalisation | None = Field(
        None, description="zero mean and unit spread; null: minibatch with gae, none with group"
    )
    bootstrap: bool = Field(True, description="the critic's value of what a time limit cut off counts; false: it ended")
    clip_actions: bool = Field(
        False, description="into the bounds of the action space; LeRobot leaves actions to the environment"
    )
    threads: int | None = Field(1, gt=0, description="torch's CPU threads; null leaves torch's own choice")

    @property
    def critic(self) -> bool:
        return self.advantage == "gae"

    @property
    def normalisation(self) -> Normalisation:
        return self.normalize_advantage or ("minibatch" if self.critic else "none")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.group_size is None) == (self.advantage == "group"):
            raise ValueError("advantage: group and group_size belong together")
        if self.critic_warmup and not self.critic:
            raise ValueError("critic_warmup: there is no critic with advantage: group")
        return self
