"""The framework's promise: with no plugin, and with plugins that change nothing, training is bare Stable-Baselines3.

Three updates on CPU, then every parameter, bit for bit, and every logged number but the clock's.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecNormalize

from budwood import compose
from budwood.api import LossTerm, Objective, RewardTerm, Run, RunCallback, hookimpl
from budwood.plugins import Activation, Active, Installed
from budwood_sb3 import updates
from budwood_sb3.plugin import SB3
from budwood_sb3.trainer import build

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
torch.set_num_threads(1)

OFF = {"learning_starts": 32, "batch_size": 32, "buffer_size": 500, "policy_kwargs": {"net_arch": [32]}}
CASES: dict[str, tuple[Any, str, dict[str, Any], int]] = {
    "ppo": (PPO, "Hopper-v5", {"n_steps": 64, "batch_size": 64, "n_epochs": 2}, 384),
    "sac": (SAC, "Hopper-v5", {**OFF, "train_freq": 8, "gradient_steps": 2}, 96),
    "dqn": (DQN, "CartPole-v1", {**OFF, "train_freq": 8, "target_update_interval": 20}, 96),
    "a2c": (A2C, "Hopper-v5", {"n_steps": 16}, 96),
}
IDENTITIES = {
    "ppo": ("reward_term", "combination", "advantage", "loss_term", "objective", "callback", "env", "everything"),
    "sac": ("reward_term", "combination", "loss_term", "objective", "callback", "env", "everything"),
    "dqn": ("reward_term", "combination", "callback", "env"),
    "a2c": ("loss_term", "objective", "advantage"),
}
SHORT = {"max_episode_steps": 20}  # so that time-limit bootstraps take part


class First:
    """The combination that returns the environment's own reward, from another column layout than the default's."""

    version, needs_obs = 0, True

    def bind(self, columns: Any) -> None:
        assert columns[0].name == "env.reward"

    def __call__(self, terms: Any, obs: Any) -> Any:
        assert len(obs) == len(terms)
        return terms[:, 0]


def gae(inputs: Any) -> Any:
    """Generalised advantage estimation, equations 11 to 16 of Schulman 2015, in the order of operations of the original."""
    advantages = np.zeros_like(inputs.values)
    carried = 0
    for t in reversed(range(len(advantages))):
        last = t == len(advantages) - 1
        going = 1.0 - (inputs.last_dones.astype(np.float32) if last else inputs.episode_starts[t + 1])
        following = inputs.last_values if last else inputs.values[t + 1]
        delta = inputs.rewards[t] + inputs.gamma * following * going - inputs.values[t]
        carried = delta + inputs.gamma * inputs.gae_lambda * going * carried
        advantages[t] = carried
    return advantages


class Watching(RunCallback):
    """Overrides every event and does nothing, but for an evaluation, which must leave no trace either."""

    def on_run_start(self, control: Any) -> None: ...

    def on_rollout_end(self, control: Any, rollout: Any) -> None: ...

    def on_update_end(self, control: Any) -> None: ...


class Same(gym.Wrapper):
    """A wrapper that changes nothing."""


class Identity:
    """Contributions that change nothing; ``kinds`` of them."""

    def __init__(self, kinds: tuple[str, ...], algo: str) -> None:
        self.kinds, self.algo = kinds, algo

    def _if(self, kind: str, value: Any) -> Any:
        return value if kind in self.kinds else None

    @hookimpl
    def reward_terms(self, run: Run) -> Any:
        term = RewardTerm(
            "size",
            fn=lambda batch: np.abs(np.asarray(batch.actions, float)).reshape(len(batch.dones), -1).sum(1),
            weight=0.0,
        )
        return self._if("reward_term", [term]) or []

    @hookimpl
    def reward_combination(self, run: Run) -> Any:
        return self._if("combination", First())

    @hookimpl
    def advantage(self, run: Run) -> Any:
        return self._if("advantage", gae)

    @hookimpl
    def loss_terms(self, run: Run) -> Any:
        zero = LossTerm("zero", fn=lambda inputs: torch.zeros(()), weight=3.0)
        return self._if("loss_term", [zero]) or []

    @hookimpl
    def objective(self, run: Run) -> Any:
        own = {"ppo": updates.clipped_surrogate, "a2c": updates.policy_gradient, "sac": updates.soft_actor}
        return self._if("objective", Objective("own", own.get(self.algo, updates.soft_actor)))

    @hookimpl
    def callbacks(self, run: Run) -> Any:
        return self._if("callback", [Watching()]) or []

    @hookimpl(wrapper=True)
    def build_env(self, run: Run, role: str) -> Any:
        inner = yield
        return (lambda: Same(inner())) if "env" in self.kinds else inner


class Events:
    """Boundaries as often as there are any, with an evaluation at each; what is logged."""

    control: Any = None
    next_boundary = 0

    def __init__(self, trainer: Any, evaluate: bool) -> None:
        self.trainer, self.evaluate = trainer, evaluate
        self.logged: list[tuple[int, dict[str, float]]] = []

    def start(self) -> bool:
        return True

    def wants_rollouts(self) -> bool:
        return True

    def rollout_end(self, rollout: Any) -> None:
        assert rollout.advantages.shape == rollout.rewards.shape

    def boundary(self, steps: int) -> bool:
        self.next_boundary = steps + 32
        if self.evaluate:
            self.trainer.evaluate(2, seed=steps)
            self.trainer.state_dict()
        return True

    def log(self, metrics: Mapping[str, float], steps: int) -> None:
        self.logged.append((steps, dict(metrics)))

    def finish(self) -> None: ...


class Kept(KVWriter):
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.logged.append((step, {key: float(value) for key, value in key_values.items()}))


def bare(algo: str, normalize: bool = False, seed: int = 1) -> tuple[dict[str, torch.Tensor], Any]:
    """A script as in Stable-Baselines3's own documentation."""
    cls, env_id, args, steps = CASES[algo]
    env: Any = make_vec_env(env_id, n_envs=2, seed=seed, env_kwargs=SHORT)
    if normalize:
        env = VecNormalize(env, norm_reward=False, gamma=0.99)
    model = cls(
        "MlpPolicy", env, seed=seed, device="cpu", **{**args, "policy_kwargs": dict(args.get("policy_kwargs", {}))}
    )
    kept = Kept()
    model.set_logger(Logger(None, [kept]))
    model.learn(steps)
    return model.policy.state_dict(), kept.logged


def under_budwood(algo: str, *kinds: str, normalize: bool = False, env: Mapping[str, Any] = {}, seed: int = 1) -> Any:
    _, env_id, args, steps = CASES[algo]
    sections = (
        SB3()
        .config_model()
        .model_validate(
            {
                "trainer": {"kind": "sb3", "algo": algo, "args": args, "total_timesteps": steps},
                "env": {
                    "id": env_id,
                    "n_envs": 2,
                    "args": SHORT,
                    "normalize": {"obs": True} if normalize else None,
                    **env,
                },
            }
        )
    )
    run = Run("parity", seed, sections.model_dump(), None, sections.trainer, env_id, None, "cpu", lambda kind: ())
    entry = metadata.EntryPoint("identity", "test:Identity", "budwood.plugins")
    active = Active(Installed("identity", entry.value, "budwood-identity", "1.0", "", entry), Identity(kinds, algo))
    activation = Activation([active] if kinds else [], None)
    contributions = compose.contributions(activation, lambda active: run, SB3().capabilities(run, None))
    trainer = build(run, contributions)
    events = Events(trainer, evaluate=bool(kinds))
    trainer.fit(events)
    trainer.close()
    return trainer.native, events.logged


def assert_same(expected: Mapping[str, torch.Tensor], model: Any) -> None:
    found = model.policy.state_dict()
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert different == []


def clockless(logged: Any, names: Any = None) -> Any:
    return [
        (step, {k: v for k, v in metrics.items() if not k.startswith("time/") and (names is None or k in names[i][1])})
        for i, (step, metrics) in enumerate(logged)
    ]


@pytest.fixture(scope="module")
def references() -> dict[str, Any]:
    return {algo: bare(algo) for algo in CASES}


@pytest.mark.parametrize("algo", CASES)
def test_with_no_plugin_it_is_the_bare_trainer(algo: str, references: Any) -> None:
    model, logged = under_budwood(algo)
    assert type(model) is CASES[algo][0]
    assert type(model.env).__name__ == "DummyVecEnv"
    assert_same(references[algo][0], model)
    assert clockless(logged) == clockless(references[algo][1])


@pytest.mark.parametrize(("algo", "kind"), [(algo, kind) for algo, kinds in IDENTITIES.items() for kind in kinds])
def test_with_identities_it_is_the_bare_trainer(algo: str, kind: str, references: Any) -> None:
    kinds = IDENTITIES[algo][:-1] if kind == "everything" else (kind,)
    model, logged = under_budwood(algo, *kinds)
    parameters, plain = references[algo]
    assert_same(parameters, model)
    assert clockless(logged, plain) == clockless(plain)


@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_with_normalised_observations_as_well(algo: str) -> None:
    parameters, _ = bare(algo, normalize=True)
    model, _ = under_budwood(algo, "reward_term", "callback", normalize=True)
    assert_same(parameters, model)


def test_the_fast_environment_gives_the_same_numbers(references: Any) -> None:
    model, _ = under_budwood("ppo", env={"fast": True})
    assert type(model.env).__name__ == "FastVecEnv"
    assert_same(references["ppo"][0], model)


def test_reward_terms_that_sum_to_the_reward_give_the_bare_trainer() -> None:
    """HalfCheetah's reward is its two info columns' sum, and float64 until the last cast is enough to reproduce it."""
    model = PPO(
        "MlpPolicy", make_vec_env("HalfCheetah-v5", n_envs=2, seed=0), seed=0, n_steps=64, n_epochs=2, device="cpu"
    )
    model.learn(384)

    class Parts:
        @hookimpl
        def reward_terms(self, run: Run) -> Any:
            yield RewardTerm("forward", info_key="reward_forward")
            yield RewardTerm("effort", info_key="reward_ctrl")

        @hookimpl
        def reward_combination(self, run: Run) -> Any:
            return Parts.Sum()

        class Sum:
            version, needs_obs = 0, False

            def bind(self, columns: Any) -> None: ...

            def __call__(self, terms: Any, obs: Any) -> Any:
                return terms @ np.array([0.0, 1.0, 1.0])

    sections = (
        SB3()
        .config_model()
        .model_validate(
            {
                "trainer": {
                    "kind": "sb3",
                    "algo": "ppo",
                    "args": {"n_steps": 64, "n_epochs": 2},
                    "total_timesteps": 384,
                },
                "env": {"id": "HalfCheetah-v5", "n_envs": 2},
            }
        )
    )
    run = Run("parity", 0, sections.model_dump(), None, sections.trainer, None, None, "cpu", lambda kind: ())
    entry = metadata.EntryPoint("parts", "test:Parts", "budwood.plugins")
    activation = Activation([Active(Installed("parts", "", "budwood-parts", "1.0", "", entry), Parts())], None)
    trainer = build(run, compose.contributions(activation, lambda active: run, SB3().capabilities(run, None)))
    trainer.fit(Events(trainer, evaluate=False))
    assert_same(model.policy.state_dict(), trainer.native)
