"""The sections of a run on LeRobot, by what ``trainer.algo`` names."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from budwood.api import Config
from budwood_lerobot.config import DatasetConfig, EnvConfig, OfflineConfig
from budwood_lerobot.online.config import OnlineConfig


class Sections(Config):
    trainer: Annotated[OfflineConfig | OnlineConfig, Field(discriminator="algo")]
    dataset: DatasetConfig | None = Field(None, description="what is learnt from; null: a plugin brings it")
    env: EnvConfig | None = Field(None, description="where episodes are played; null: no episodes")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.trainer, OnlineConfig):
            if self.env is None:
                raise ValueError("trainer.algo: online learns from episodes: name an environment under env")
            if self.dataset is not None:
                raise ValueError("trainer.algo: online reads no dataset: leave the section out, or use algo: offline")
        return self
