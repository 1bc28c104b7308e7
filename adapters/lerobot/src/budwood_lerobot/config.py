"""The sections ``trainer``, ``dataset`` and ``env`` of a run on LeRobot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from budwood.api import Config, first_pass, refuse


class Native(Config):
    """A section whose further keys are fields of a configuration of LeRobot, by their own names."""

    model_config = ConfigDict(extra="allow")

    @property
    def fields(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


@contextmanager
def _each_at_its_place() -> Iterator[None]:
    """What LeRobot has no field for, or cannot find, is told of the key that names it."""
    from budwood_lerobot.native import MisplacedError

    try:
        yield
    except MisplacedError as error:
        refuse([((key,), sentence) for key, sentence in error.found])


class PolicyConfig(Native):
    """Further keys are fields of the policy's configuration, such as ``chunk_size``."""

    type: str | None = Field(None, description="act, diffusion, smolvla, pi0, ... or what a package has registered")
    path: str | None = Field(None, description="a folder with config.json and model.safetensors, or an id on the hub")
    pretrained_revision: str | None = Field(None, description="with path: branch, tag or commit on the hub")
    discover_packages_path: str | None = Field(None, description="a package to import, which registers the policy")

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if (self.type is None) == (self.path is None):
            raise ValueError("give a type for a new policy, or a path to a trained one")
        if not first_pass(info):
            with _each_at_its_place():
                self.native("cpu")
        return self

    def native(self, device: str) -> Any:
        """LeRobot's ``PreTrainedConfig``."""
        from budwood_lerobot.native import discover, policy_config

        discover(self.discover_packages_path)
        return policy_config(
            self.fields, kind=self.type, path=self.path, device=device, revision=self.pretrained_revision
        )


class EnvConfig(Native):
    """An environment of LeRobot. Further keys are fields of its ``EnvConfig``, such as ``task``."""

    type: str = Field(description="pusht, aloha, libero, ... or what a package has registered")
    n_envs: int = Field(1, gt=0, description="environments side by side")
    use_async_envs: bool = Field(False, description="each environment in a process of its own")
    discover_packages_path: str | None = Field(None, description="a package to import, which registers the environment")

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if not first_pass(info):
            with _each_at_its_place():
                self.native()
        return self

    def native(self) -> Any:
        """LeRobot's own ``EnvConfig``."""
        from budwood_lerobot.native import discover, env_config

        discover(self.discover_packages_path)
        return env_config(self.type, self.fields)


class DatasetConfig(Native):
    """A LeRobotDataset. Further keys are fields of LeRobot's ``DatasetConfig``, such as ``episodes``."""

    repo_id: str = Field(min_length=1, description="its name, and its id on the hub")
    root: str | None = Field(None, description="its folder; null: where LeRobot keeps what it downloads")

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if not first_pass(info):
            with _each_at_its_place():
                self.native()
        return self

    def native(self) -> Any:
        """LeRobot's own ``DatasetConfig``."""
        from budwood_lerobot.native import dataset_config

        return dataset_config({"repo_id": self.repo_id, "root": self.root, **self.fields})


class OfflineConfig(Config):
    """``args`` are fields of LeRobot's ``TrainPipelineConfig``, such as ``batch_size``, by their own names."""

    kind: Literal["lerobot"]
    algo: Literal["offline"] = Field(description="offline: learn from a dataset")
    policy: PolicyConfig
    total_steps: int = Field(gt=0, description="optimiser steps")
    args: dict[str, Any] = Field(default_factory=dict, description="fields of LeRobot's TrainPipelineConfig")
    threads: int | None = Field(1, gt=0, description="torch's CPU threads; null leaves torch's own choice")

    @field_validator("args")
    @classmethod
    def _check(cls, args: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if first_pass(info):
            return args
        from budwood_lerobot.native import train_config

        with _each_at_its_place():
            train_config(args)
        return args
