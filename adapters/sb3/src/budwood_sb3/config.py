"""The sections ``trainer`` and ``env`` of a run on Stable-Baselines3."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from budwood.api import Config, first_pass
from budwood_sb3.algorithms import ALGORITHMS, Algo, argument_problems

SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf", "delta_std")
NOISES = ("normal", "ornstein_uhlenbeck")
ACTIVATIONS = ("elu", "gelu", "leaky_relu", "relu", "selu", "sigmoid", "silu", "softplus", "tanh")


class TrainerConfig(Config):
    """``args`` are the algorithm's own constructor arguments, by their own names."""

    kind: Literal["sb3"]
    algo: Algo
    policy: str | None = Field(
        None, description="MlpPolicy, CnnPolicy, ...; by default the one that fits the observations"
    )
    total_timesteps: int = Field(gt=0)
    args: dict[str, Any] = Field(default_factory=dict, description="constructor arguments of the algorithm")
    threads: int | None = Field(
        1,
        gt=0,
        description="torch's CPU threads: small networks gain nothing from more; null leaves torch's own choice",
    )

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if first_pass(info):
            return self
        algorithm = ALGORITHMS[self.algo]
        problems = argument_problems(algorithm, self.args) + value_problems(self.args)
        aliases = getattr(algorithm.load(), "policy_aliases", {})
        if self.policy is not None and self.policy not in aliases:
            problems.append(f"{algorithm.attribute} has no policy {self.policy!r}; it has {', '.join(aliases)}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class NormalizeConfig(Config):
    """``VecNormalize``. ``gamma`` defaults to the algorithm's own discount."""

    obs: bool = True
    reward: bool = False
    clip_obs: float = Field(10.0, gt=0)
    clip_reward: float = Field(10.0, gt=0)
    gamma: float | None = Field(None, gt=0, le=1)


class EnvConfig(Config):
    """``args`` go to the environment's own constructor."""

    id: str = Field(description="a Gymnasium id, module:Id, or module:Class")
    n_envs: int = Field(1, gt=0)
    vec: str = Field("dummy", description="dummy, subproc, envpool, or the name of what a plugin of the run brings")
    args: dict[str, Any] = Field(default_factory=dict)
    normalize: NormalizeConfig | None = None
    fast: bool | None = Field(
        None, description="copy infos one level deep; vec: dummy only, same numbers; null: where reward terms are bound"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fast and self.vec != "dummy":
            raise ValueError(f"fast is for vec: dummy, and vec is {self.vec}")
        return self


def value_problems(args: Mapping[str, Any]) -> list[str]:
    """Values that YAML writes in a form of ours, checked before anything is built."""
    problems = []
    for key in SCHEDULES:
        value = args.get(key)
        if isinstance(value, Mapping) and not _is_linear(value):
            problems.append(f"{key}: a schedule is a number or {{linear: [start, end]}}")
    noise = args.get("action_noise")
    if noise is not None and not (isinstance(noise, Mapping) and len(noise) == 1 and next(iter(noise)) in NOISES):
        problems.append("action_noise: write {normal: sigma} or {ornstein_uhlenbeck: sigma}")
    policy_kwargs = args.get("policy_kwargs") or {}
    if not isinstance(policy_kwargs, Mapping):
        return [*problems, "policy_kwargs: write a mapping, e.g. {net_arch: [64, 64]}"]
    activation = policy_kwargs.get("activation_fn")
    if activation is not None and activation not in ACTIVATIONS:
        problems.append(f"policy_kwargs.activation_fn: {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    return problems


def _is_linear(value: Mapping[str, Any]) -> bool:
    ends = value.get("linear")
    return set(value) == {"linear"} and isinstance(ends, (list, tuple)) and len(ends) == 2


def native_arguments(args: Mapping[str, Any], action_shape: tuple[int, ...]) -> dict[str, Any]:
    """``args`` as Stable-Baselines3 wants them: schedules, noises, frequencies and classes made from plain values."""
    native = copy.deepcopy(dict(args))  # Stable-Baselines3 writes into what it is given
    for key in SCHEDULES:
        if isinstance(native.get(key), Mapping):
            native[key] = _linear(*native[key]["linear"])
    if isinstance(native.get("train_freq"), list):
        native["train_freq"] = tuple(native["train_freq"])
    if native.get("action_noise") is not None:
        native["action_noise"] = _noise(native["action_noise"], action_shape)
    if native.get("policy_kwargs"):
        native["policy_kwargs"] = _policy_kwargs(native["policy_kwargs"])
    return native


def _linear(start: float, end: float) -> Any:
    from stable_baselines3.common.utils import LinearSchedule

    return LinearSchedule(float(start), float(end), 1.0)


def _noise(noise: Mapping[str, float], shape: tuple[int, ...]) -> Any:
    import numpy as np
    from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise

    ((kind, sigma),) = noise.items()
    make = NormalActionNoise if kind == "normal" else OrnsteinUhlenbeckActionNoise
    return make(np.zeros(shape), np.full(shape, float(sigma)))


def _policy_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    from torch import nn

    classes = {name.lower(): getattr(nn, name) for name in dir(nn) if name[0].isupper()}
    native = dict(kwargs)
    if "activation_fn" in native:
        native["activation_fn"] = classes[native["activation_fn"].replace("_", "")]
    return native
