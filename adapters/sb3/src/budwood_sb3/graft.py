"""Contributions on a trainer class or model of the user's own script, which otherwise stays as it is.

A grafted class is a subclass under the same name: reward terms, buffers and losses are bound when a model is set up, its
callbacks when ``learn`` collects them. A built model becomes an object of that subclass and is bound where it stands.
Nothing of ours is saved with the model.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from budwood.api import BindingError, Capabilities, Contributions, Graft, TrainerEvents
from budwood_sb3 import algorithms, vec
from budwood_sb3.ars import Boundaries
from budwood_sb3.bridge import Metrics, StopTraining
from budwood_sb3.buffers import refuse_experience, refuse_hindsight
from budwood_sb3.policies import ScaledRates, neutral_policy
from budwood_sb3.trainer import SB3Trainer, bind_buffers, has_terms, refuse_normalized_reward, with_terms
from budwood_sb3.updates import Losses, losses_of, update_for

GRAFTABLE = frozenset(("reward_terms", "reward_combination", "advantage", "callbacks", "evaluators"))
"""What needs only the environments, the buffer and callbacks of a model that is already built."""

TRANSPARENT = (vec.TermVecEnv, VecNormalize, VecMonitor, VecTransposeImage)
"""Wrappers that an evaluation can do without or redo itself."""


def graft_capabilities(target: Any) -> Capabilities | None:
    """What a class or a built model can bind; None if it is not one of Stable-Baselines3 or sb3-contrib."""
    cls = target if inspect.isclass(target) else type(target)
    algorithm = algorithms.of_class(cls) if issubclass(cls, BaseAlgorithm) else None
    if algorithm is None:
        return None
    known = algorithms.capabilities(algorithm)
    seams, refused = dict(known.seams), dict(known.refused)
    seams.pop("build_env")
    refused["build_env"] = "a grafted script makes its own environments"
    if "loss_terms" in seams and update_for(cls) is None:
        for kind in ("loss_terms", "objective"):
            seams.pop(kind)
            refused[kind] = f"{cls.__name__} has a train() of its own, which budwood cannot extend"
    return Capabilities(cls.__name__, seams, refused, known.loss_inputs, GRAFTABLE & set(seams), known.rollouts)


def build(graft: Graft, target: Any) -> Any:
    """The grafted subclass of a class, or the grafted model itself."""
    cls: Any = target if inspect.isclass(target) else type(target)
    if issubclass(cls, Grafted):
        raise BindingError("it is grafted already", do="Give all plugins in one call of graft")
    contributions = graft.contributions()
    if cls is target:
        return _subclass(cls, graft, losses_of(contributions))
    _bind_object(target, contributions)
    target.__class__ = _subclass(cls, graft, None)
    return target


def _bind_object(model: Any, contributions: Contributions) -> None:
    """Everything that could refuse does so before anything is changed."""
    if has_terms(contributions) and getattr(model, "replay_buffer", None) is not None:
        refuse_hindsight(model.replay_buffer)
        refuse_experience(model.replay_buffer)
    if model.env is not None:
        model.env = bound_env(model.env, contributions)
        source = vec.find(model.env)
        if source is not None and model._last_obs is not None:
            source.obs = model._last_obs if model._vec_normalize_env is None else model._last_original_obs
        bind_buffers(model, contributions)
    model._contributions = contributions


def _subclass(cls: type[BaseAlgorithm], graft: Graft, losses: Losses | None) -> type[BaseAlgorithm]:
    update: type | None = update_for(cls) if losses is not None else None
    if algorithms.is_ars(cls):
        update = Boundaries
    bases = (Grafted, cls) if update is None else (Grafted, update, cls)
    namespace = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, bases, {**namespace, "_graft": graft})


class Grafted(ScaledRates):
    """Mixed into the user's class. Every object has contributions of its own.

    It derives from BaseAlgorithm so that an object of the user's class can become one of the subclass.
    """

    _graft: Graft
    _contributions: Contributions
    _losses: Losses | None = None
    _events: Any = None

    def _setup_model(self) -> None:
        if "_contributions" not in self.__dict__:
            self._contributions = self._graft.contributions()
        own = self._contributions
        self._losses = losses_of(own)
        if self.env is not None:
            self._bind_env()
        policy_class = self.policy_class
        if own.policy is not None:
            self.policy_class = neutral_policy(own.policy)
        super()._setup_model()  # type: ignore[safe-super]
        self.policy_class = policy_class  # the one that is saved; on loading, this method replaces it again
        bind_buffers(self, own)

    def _bind_env(self) -> None:
        self.env = bound_env(self._training_env, self._contributions)

    @property
    def _training_env(self) -> VecEnv:
        assert self.env is not None
        return self.env

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        super().set_env(env, force_reset)
        self._bind_env()
        bind_buffers(self, self._contributions)

    def load_replay_buffer(self, *args: Any, **kwargs: Any) -> None:
        super().load_replay_buffer(*args, **kwargs)  # type: ignore[misc]
        bind_buffers(self, self._contributions)

    def _init_callback(self, callback: Any, progress_bar: bool = False) -> BaseCallback:
        own = self._contributions
        source = vec.find(self.env)
        if source is not None and not any(isinstance(item, TermWriter) for item in self.logger.output_formats):
            self.logger.output_formats.insert(0, TermWriter(source))
        if not own.callbacks and not own.evaluators:
            return super()._init_callback(callback, progress_bar)
        trainer = SB3Trainer(self, self._total_timesteps, partial(evaluation_envs, self._training_env))
        self._events = self._graft.events(trainer, own, self._record)
        return super()._init_callback([*_listed(callback), trainer.attach(self._events, None)], progress_bar)

    def _record(self, metrics: Metrics, steps: int) -> None:
        for name, value in metrics.items():
            self.logger.record(name, value)

    def learn(self, *args: Any, **kwargs: Any) -> Any:
        with suppress(StopTraining):
            super().learn(*args, **kwargs)  # type: ignore[safe-super]
        events: TrainerEvents | None = self._events
        if events is not None:
            events.finish()
            self._events = None
        return self

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_contributions", "_losses", "_events"]


class TermWriter(KVWriter):
    """First among a logger's writers: adds the reward terms' means to what the others are about to write."""

    def __init__(self, terms: vec.TermVecEnv) -> None:
        self._terms = terms

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        for name, value in self._terms.summary().items():
            key_values[name], key_excluded[name] = value, ("",)

    def close(self) -> None: ...


def _listed(callback: Any) -> list[BaseCallback]:
    """What ``learn`` accepts as a callback, as a list of callbacks."""
    if isinstance(callback, list):
        return callback
    if callback is None:
        return []
    return [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]


def bound_env(env: VecEnv, contributions: Contributions) -> VecEnv:
    """``env`` with the reward terms inside its VecNormalize if it has one, and outermost otherwise."""
    found = vec.find(env)
    if found is not None:
        if found.contributions is contributions:
            return env
        raise BindingError(
            "these environments already carry the reward terms of another grafted model",
            where="env",
            do="Make environments of its own for each model",
        )
    normalize = _innermost_normalize(env)
    if normalize is None:
        return with_terms(env, contributions)
    if normalize.norm_reward:
        refuse_normalized_reward(contributions, "VecNormalize(norm_reward=True)")
    normalize.venv = with_terms(normalize.venv, contributions)
    return env


def _innermost_normalize(env: VecEnv) -> VecNormalize | None:
    found = None
    while isinstance(env, VecEnvWrapper):
        found = env if isinstance(env, VecNormalize) else found
        env = env.venv
    return found


def evaluation_envs(training: VecEnv, n: int) -> VecEnv:
    """``n`` environments like those of ``training``, rebuilt from their Gymnasium spec."""
    env: VecEnv = training
    while isinstance(env, VecEnvWrapper):
        if not isinstance(env, TRANSPARENT):
            raise _not_rebuildable(f"{type(env).__name__} around them cannot be rebuilt")
        env = env.venv
    if not isinstance(env, (DummyVecEnv, SubprocVecEnv)):
        raise _not_rebuildable(f"they live in a {type(env).__name__}")
    spec = env.get_attr("spec", 0)[0]
    if spec is None:
        raise _not_rebuildable("they were not made by gymnasium.make")
    wrappers = tuple(item for item in spec.additional_wrappers if not item.entry_point.endswith(":Monitor"))
    unknown = [item.name for item in wrappers if item.kwargs is None]
    if unknown:
        raise _not_rebuildable(f"the arguments of their wrapper {unknown[0]} are not recorded")
    bare = replace(spec, additional_wrappers=wrappers, kwargs={**spec.kwargs, "render_mode": None})
    return make_vec_env(lambda: gym.make(bare), n_envs=n)


def _not_rebuildable(reason: str) -> BindingError:
    return BindingError(
        f"an evaluation needs environments of its own, and the training ones cannot be rebuilt: {reason}",
        where="env",
        do="Make them with gymnasium.make or make_vec_env and wrappers that derive from gymnasium.utils.RecordConstructorArgs",
    )
