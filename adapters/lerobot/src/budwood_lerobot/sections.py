"""The sections of a run on LeRobot, by what ``trainer.algo`` names."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, ValidationInfo, model_validator

from budwood.api import Config, first_pass
from budwood_lerobot.config import DatasetConfig, EnvConfig, OfflineConfig
from budwood_lerobot.online.config import OnlineConfig


class Sections(Config):
    trainer: Annotated[OfflineConfig | OnlineConfig, Field(discriminator="algo")]
    dataset: DatasetConfig | None = Field(None, description="what is learnt from; null: a plugin brings it")
    env: EnvConfig | None = Field(None, description="where episodes are played; null: no episodes")

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if isinstance(self.trainer, OnlineConfig):
            if self.env is None:
                raise ValueError("trainer.algo: online learns from episodes: name an environment under env")
            if self.dataset is not None:
                raise ValueError("trainer.algo: online reads no dataset: leave the section out, or use algo: offline")
        elif not first_pass(info) and self.env is not None and not _plugins(self):
            _check_fit(self.trainer, self.dataset, self.env)
        return self


def _plugins(whole: Any) -> bool:
    """Of a run: they may bring another dataset or policy, so that only the run itself can tell what fits."""
    return bool(type(whole.plugins).model_fields) if hasattr(whole, "plugins") else False


def _check_fit(trainer: OfflineConfig, dataset: DatasetConfig | None, env: EnvConfig) -> None:
    """As far as files that are here tell: a dataset that is still to be fetched is looked at by the run."""
    from budwood_lerobot.features import REMEDY, misfit, of_folder

    policy = trainer.policy.native("cpu")
    rows = of_folder(None if dataset is None else dataset.root)
    found = misfit(policy, policy.input_features or rows, rows, env.native())
    if found:
        raise ValueError(f"{found}. {REMEDY}")
