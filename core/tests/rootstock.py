"""An adapter and two plugins whose configuration has a key of every kind, and what its tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import Field, SecretStr, model_validator

from budwood.api import Config, ConfigError, PluginError, hookimpl


class Box(Config):
    kind: Literal["box"]
    size: int = 3
    label: str = ""


class Ball(Config):
    kind: Literal["ball"]
    radius: float
    label: str = ""


class Options(Config):
    outer_every: int = Field(default=10, gt=0)
    noise: float = 0.5
    mode: Literal["slow", "fast"] = "slow"
    shape: Annotated[Box | Ball, Field(discriminator="kind")] | None = None
    limit: int | str = 0
    terms: tuple[Box, ...] = ()
    pair: tuple[int, ...] = Field(default=(), max_length=2)
    kinds: frozenset[str] = frozenset()
    api_token: str | None = None
    login: SecretStr | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.noise < 0:
            raise ValueError("noise below zero makes no sense")
        if self.noise > 100:
            raise RuntimeError("a bug of the plugin")
        if self.noise == 99:
            raise PluginError("its data set is gone", where="plugins.flow.noise")
        return self


class Flow:
    @hookimpl
    def config_model(self) -> Any:
        return Options


class Bare:
    """A plugin without options."""


class Rootstock:
    """An adapter."""

    @hookimpl
    def config_model(self) -> Any:
        class TrainerConfig(Config):
            kind: Literal["rootstock"]
            total_timesteps: int
            args: dict[str, Any] = Field(default_factory=dict)

        class EnvConfig(Config):
            id: str
            n_envs: int = Field(1, description="environments side by side")

        class Sections(Config):
            trainer: TrainerConfig
            env: EnvConfig

        return Sections

    @hookimpl
    def build_trainer(self, run: Any, contributions: Any) -> Any: ...


MINIMAL = """\
trainer: {kind: rootstock, total_timesteps: 1_000}
env: {id: Reach-v0}
"""


def written(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(call: Any, folder: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value).replace(f"{folder}/", "")
