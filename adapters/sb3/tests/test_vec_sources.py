"""A vector of environments that a plugin brings takes the place of the adapter's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from budwood.api import ConfigError, Contributed, ContributionError, Contributions, PluginError, RewardTerm, hookimpl
from budwood_sb3 import vec_sources
from budwood_sb3.plugin import SB3
from budwood_sb3.trainer import build

TRAINER = {"algo": "ppo", "args": {"n_steps": 16, "batch_size": 16}, "total_timesteps": 96}
ENV = {"id": "Point-v0", "n_envs": 3, "vec": "herd", "args": {"discrete": False}}


class Herd(VecEnvWrapper):
    """Infos as arrays, and an end of the episode as the only thing left in the dicts."""

    arrays: Mapping[str, Any] = {}

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        self.arrays = Refusing(speed=np.array([info["speed"] for info in infos]))
        return obs, rewards, dones, [info if done else {} for info, done in zip(infos, dones, strict=True)]

    def info_arrays(self) -> Mapping[str, Any]:
        return self.arrays


class Refusing(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        raise ContributionError(f"a herd knows no {key}", do="Ask for speed")


MADE: list[tuple[Any, ...]] = []


def make(name: str, n_envs: int, seed: int, args: Mapping[str, Any], role: str) -> VecEnv:
    MADE.append((name, n_envs, seed, dict(args), role))
    return Herd(make_vec_env(name, n_envs, seed, env_kwargs=dict(args)))


def offering(run: Any, *names: str) -> Any:
    """``run`` with plugins that each bring a vector called so."""
    offers = [Contributed({name: make}, f"p{i}", f"budwood-p{i} 1.0") for i, name in enumerate(names)]
    return dataclasses.replace(run, components=lambda kind: offers if kind == vec_sources.KIND else ())


@pytest.fixture
def run(make_run: Any) -> Any:
    MADE.clear()
    return offering(make_run(TRAINER, ENV, seed=4), "herd")


class Terms:
    key = "speed"

    @hookimpl
    def reward_terms(self, run: Any) -> Any:
        yield RewardTerm("pace", info_key=self.key, weight=0.5)
        yield RewardTerm("asked", fn=lambda batch: batch.info(self.key), weight=0.5)


def test_it_trains_and_evaluates_on_what_the_plugin_makes(run: Any, train: Any, events: Any) -> None:
    seen = events()
    trainer = train(run, Terms(), events=seen)
    assert isinstance(trainer.native.env.venv, Herd)
    logged = seen.logged[-1][1]
    assert logged["terms/terms.pace"] == logged["terms/terms.asked"] != 0.0
    trainer.evaluate(2, 9)
    assert MADE == [("Point-v0", 3, 4, {"discrete": False}, "train"), ("Point-v0", 2, 4, {"discrete": False}, "eval")]


def test_the_adapters_own_are_not_asked_for(make_run: Any) -> None:
    run = offering(make_run(TRAINER, {**ENV, "vec": "dummy"}), "dummy")
    assert isinstance(build(run, Contributions()).native.env, DummyVecEnv)


@pytest.mark.parametrize("which", [0, 1])
def test_arrays_say_themselves_what_they_lack(run: Any, train: Any, which: int) -> None:
    class One(Terms):
        key = "sped"

        @hookimpl
        def reward_terms(self, run: Any) -> Any:
            yield list(super().reward_terms(run))[which]

    name = ("pace", "asked")[which]
    with pytest.raises(ContributionError) as raised:
        train(run, One())
    assert str(raised.value) == (
        f"plugins.one: reward term one.{name} cannot be computed: a herd knows no sped. Asked for by budwood-one 1.0. "
        "Ask for speed."
    )


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        (
            ("heard",),
            ConfigError,
            "env.vec: no vector of environments is called 'herd'; this run knows dummy, subproc, envpool, heard. Did you mean "
            "'heard'?",
        ),
        (
            (),
            ConfigError,
            "env.vec: no vector of environments is called 'herd'; this run knows dummy, subproc, envpool. A plugin that brings "
            "one has to be named under plugins.",
        ),
        (
            ("herd", "herd"),
            PluginError,
            "env.vec: two plugins offer 'herd': budwood-p0 1.0 and budwood-p1 1.0. Remove one of them from the run.",
        ),
    ],
)
def test_a_name_that_cannot_be_used_is_told_before_anything_is_built(
    run: Any, names: tuple[str, ...], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as raised:
        SB3().capabilities(offering(run, *names), None)
    assert str(raised.value) == message


def test_there_is_nothing_to_wrap(run: Any) -> None:
    with pytest.raises(ConfigError, match=r"^env.vec: budwood-p0 1.0 steps its environments together, so a plugin's"):
        build(run, Contributions(wrap_env=lambda factory, role: factory))
