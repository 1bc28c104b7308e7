"""The online loop piece by piece, against slow references, gymnasium's vectors and Stable-Baselines3. No import of LeRobot."""

from __future__ import annotations

import math
from copy import deepcopy
from itertools import count
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from points import Clock, Gaussian, Reach, Tokens, tensors

from budwood.api import AdvantageInputs, ConfigError, Contributed, ContributionError, Contributions
from budwood_lerobot.online.advantages import gae, group_relative
from budwood_lerobot.online.collecting import Collector
from budwood_lerobot.online.config import OnlineConfig
from budwood_lerobot.online.episodes import Episodes, episode_seed
from budwood_lerobot.online.neutral import Neutral
from budwood_lerobot.online.processors import Commands, Processors
from budwood_lerobot.online.samples import Collected
from budwood_lerobot.online.update import Update

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]


def config_of(**given: Any) -> OnlineConfig:
    return OnlineConfig.model_validate({"kind": "lerobot", "algo": "online", "total_steps": 1, **given})


def vector_of(env: Any, n: int, mode: AutoresetMode = AutoresetMode.SAME_STEP) -> Any:
    return SyncVectorEnv([env] * n, autoreset_mode=mode)


def neutral_of(policy: Any, critic: bool = True) -> Neutral:
    return Neutral(Contributed(None, "toy", "budwood-toy 1.0"), policy, critic)


def collector_of(vector: Any, policy: Any, config: OnlineConfig, seed: int = 3) -> Collector:
    neutral = neutral_of(policy, config.critic)
    commands = Commands(vector.single_action_space, config.clip_actions)
    return Collector(Episodes(vector), neutral, Processors(tensors), commands, config, seed)


# ---- advantages ----------------------------------------------------------------------------------------------------


def slow_advantages(r: Any, v: Any, v_final: Any, terminated: Any, ended: Any, gamma: float, lam: float) -> Any:
    """A_t = sum_l (gamma lambda)^(l-t) prod_{t<=j<l} e_j delta_l, every sum written out; float64."""
    steps, n = r.shape
    found = np.zeros((steps, n))
    for i in range(n):
        for t in range(steps):
            weight = 1.0
            for later in range(t, steps):
                ahead = v_final[later, i] if ended[later, i] or later == steps - 1 else v[later + 1, i]
                delta = r[later, i] + gamma * (0.0 if terminated[later, i] else ahead) - v[later, i]
                found[t, i] += weight * delta
                if ended[later, i]:
                    break
                weight *= gamma * lam
    return found


@pytest.mark.parametrize("seed", range(5))
def test_advantages_are_those_of_the_written_out_sum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps, n, gamma, lam = 37, 6, 0.97, 0.9
    r, v, v_final = (rng.normal(size=(steps, n)) for _ in range(3))
    terminated = rng.random((steps, n)) < 0.1
    truncated = ~terminated & (rng.random((steps, n)) < 0.1)
    terminated[-1] = [True, False, False, False, False, False]
    truncated[-1] = [False, True, False, False, False, False]
    ended = terminated | truncated
    inputs = AdvantageInputs(
        rewards=(r + gamma * v_final * truncated).astype(np.float32),
        values=v.astype(np.float32),
        episode_starts=np.concatenate([np.ones((1, n)), ended[:-1]]).astype(np.float32),
        last_values=v_final[-1].astype(np.float32),
        last_dones=ended[-1].astype(np.float32),
        gamma=gamma,
        gae_lambda=lam,
    )
    found = gae(inputs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_advantages(r, v, v_final, terminated, ended, gamma, lam), atol=2e-5)


def test_advantages_within_a_group_are_those_of_its_returns() -> None:
    rewards = np.array([[1, 0, 5, 5, 0, 0], [1, 0, 0, 0, 3, 0]], np.float32)
    groups = np.array([0, 0, 1, 1, 2, 2])
    none = np.zeros((2, 6), np.float32)
    found = group_relative(AdvantageInputs(rewards, none, none, none[0], none[0], 1.0, 1.0, groups))
    half = 1 / (np.sqrt(2.0) + 1e-6)  # returns 2 and 0: mean 1, spread sqrt(2)
    wide = 1.5 / (1.5 * np.sqrt(2.0) + 1e-6)
    np.testing.assert_allclose(found[0], [half, -half, 0, 0, wide, -wide], rtol=1e-6)
    np.testing.assert_array_equal(found[0], found[1])


# ---- episodes ------------------------------------------------------------------------------------------------------


class Valued(Gaussian):
    """Three steps a decision on the clock; the value is a known function of what is seen."""

    def __init__(self) -> None:
        super().__init__(gym.spaces.Dict({"a": gym.spaces.Box(0, 1, (4,))}), Clock.action_space, steps=3)

    def value(self, obs: Any) -> Any:
        return worth(obs["observation.state"][:, 0], obs["observation.state"][:, 1])


def worth(length: Any, now: Any) -> Any:
    return 0.5 * length - 0.3 * now


def played(seed: int, row: int, decisions: int, chunk: int, gamma: float) -> dict[str, list[Any]]:
    """The clock of one environment alone, without a vector: what a collector should have seen."""
    clock, number = Clock(), 0
    out: dict[str, list[Any]] = {key: [] for key in ("r", "v", "v_final", "terminated", "ended", "start", "steps")}

    def begin() -> None:
        nonlocal number
        clock.reset(seed=episode_seed(seed, row, number))
        number += 1

    begin()
    start = True
    for _ in range(decisions):
        out["start"].append(start)
        out["v"].append(worth(clock.length, clock.now))
        total, over, cut = 0.0, False, False
        executed = 0
        for _ in range(chunk):
            _, reward, over, cut, _ = clock.step(None)
            executed, total = executed + 1, total + reward
            if over or cut:
                break
        out["steps"].append(executed)
        out["r"].append(total)
        out["v_final"].append(worth(clock.length, clock.now))
        out["terminated"].append(over)
        out["ended"].append(over or cut)
        start = over or cut
        if start:
            begin()
    return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bootstrap", [True, False])
def test_credit_is_right_where_episodes_end_inside_a_chunk(mode: AutoresetMode, bootstrap: bool) -> None:
    config = config_of(rollout=40, gamma=0.9, gae_lambda=0.8, bootstrap=bootstrap)
    collector = collector_of(vector_of(Clock, 5, mode), Valued(), config)
    alone = [played(3, row, 80, 3, 0.9) for row in range(5)]
    for half in range(2):  # episodes go on from rollout to rollout
        collected = collector.collect()
        at = slice(40 * half, 40 * half + 40)
        r, v, v_final, terminated, ended, starts = (
            np.array([one[key][at] for one in alone]).T for key in ("r", "v", "v_final", "terminated", "ended", "start")
        )
        assert min((ended & ~terminated).sum(), terminated.sum()) > 5
        if not bootstrap:
            terminated = ended
        np.testing.assert_allclose(np.stack(collected.values), v, rtol=1e-6)
        np.testing.assert_array_equal(np.stack(collected.episode_starts), starts)
        np.testing.assert_allclose(np.stack(collected.rewards), r + 0.9 * v_final * (ended & ~terminated), rtol=1e-6)
        found = gae(collected.advantage_inputs(config.gamma, config.gae_lambda, None))
        np.testing.assert_allclose(found, slow_advantages(r, v, v_final, terminated, ended, 0.9, 0.8), atol=1e-4)
    assert collector.env_steps == sum(sum(one["steps"]) for one in alone)


def test_processes_play_the_same_episodes() -> None:
    rollouts = []
    for kind in (SyncVectorEnv, AsyncVectorEnv):
        torch.manual_seed(0)
        vector = kind([Reach] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
        policy = Gaussian(gym.spaces.Dict({"a": gym.spaces.Box(0, 1, (4,))}), Reach.action_space)
        rollouts.append(collector_of(vector, policy, config_of(rollout=30)).collect())
        vector.close()
    for name in ("rewards", "values", "episode_starts"):
        np.testing.assert_array_equal(np.stack(getattr(rollouts[0], name)), np.stack(getattr(rollouts[1], name)))
    assert np.stack(rollouts[0].episode_starts).sum() > 2


@pytest.mark.parametrize("mode", MODES)
def test_unfinished_episodes_are_brought_about_again(mode: AutoresetMode) -> None:
    rng = np.random.default_rng(0)
    first = Episodes(vector_of(Reach, 3, mode))
    first.begin(np.ones(3, dtype=bool), [1, 2, 3])
    for _ in range(4):
        first.decide(rng.uniform(-0.3, 0.3, (3, 2, 2)).astype(np.float32), np.ones(3, dtype=bool))
    first.begin(np.array([False, True, False]), [0, 9, 0])
    first.decide(rng.uniform(-0.3, 0.3, (3, 1, 2)).astype(np.float32), np.ones(3, dtype=bool))
    first.begin(np.array([False, False, True]), [0, 0, 8])
    second = Episodes(vector_of(Reach, 3, mode))
    assert second.load_state_dict(first.state_dict()).all()
    for _ in range(3):
        actions = rng.uniform(-1, 1, (3, 2, 2)).astype(np.float32)
        one, other = (episodes.decide(actions, np.ones(3, dtype=bool)) for episodes in (first, second))
        np.testing.assert_array_equal(one.rewards, other.rewards)
        np.testing.assert_array_equal(one.obs["agent_pos"], other.obs["agent_pos"])
    np.testing.assert_array_equal(first.lengths, second.lengths)


def test_what_does_not_come_about_again_is_told() -> None:
    class Drifts(Reach):
        count = 0

        def reset(self, **given: Any) -> Any:
            seen = super().reset(**given)
            type(self).count += 1
            self.point = self.point + 0.01 * type(self).count
            return self._seen(), seen[1]

    config = config_of(rollout=3)
    policy = Gaussian(gym.spaces.Dict({"a": gym.spaces.Box(0, 1, (4,))}), Reach.action_space)
    one = collector_of(vector_of(Drifts, 2), policy, config)
    one.collect()
    other = collector_of(vector_of(Drifts, 2), policy, config)
    notes = other.load_state_dict(one.state_dict())
    assert "episodes restart in environments 0, 1" in notes[0]
    assert other.begun.tolist() == (one.begun + 1).tolist()
    other.collect()


def test_a_vector_that_never_resets_is_refused() -> None:
    with pytest.raises(ConfigError, match="refuses a step after the end"):
        Episodes(vector_of(Clock, 2, AutoresetMode.DISABLED))


# ---- groups --------------------------------------------------------------------------------------------------------


def test_a_group_begins_from_one_state_and_plays_one_episode_each() -> None:
    config = config_of(advantage="group", group_size=3, rollout=20)
    policy = Tokens(gym.spaces.Dict({"a": gym.spaces.Box(0, 1, (4,))}), Reach.action_space)
    limited = lambda: gym.wrappers.TimeLimit(Reach(), 8)  # noqa: E731
    collector = collector_of(vector_of(limited, 6), policy, config)
    begun = []
    for _ in range(2):
        collected = collector.collect()
        first = collected.obs[0]["observation.state"]
        assert torch.equal(first[0], first[1])
        assert torch.equal(first[3], first[5])
        assert not torch.equal(first[0], first[3])
        begun.append(first)
        valid = np.stack(collected.valid)
        assert (np.diff(valid.astype(int), axis=0) <= 0).all()  # once it waits, it waits
        assert (np.stack(collected.rewards)[~valid] == 0).all()
        assert valid.sum(axis=0).max() <= 4  # eight steps are four decisions
        played_now = list(collector.episodes.recent)[-6:]
        np.testing.assert_allclose(sorted(np.stack(collected.rewards).sum(axis=0)), sorted(r for r, _, _ in played_now))
    assert not torch.equal(*begun)
    assert len(collector.episodes.recent) == 12


def test_a_group_that_begins_from_different_states_is_refused() -> None:
    numbers = count()

    class Own(Reach):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return super().reset(seed=next(numbers))

    policy = Tokens(gym.spaces.Dict({"a": gym.spaces.Box(0, 1, (4,))}), Reach.action_space)
    with pytest.raises(ConfigError, match="begin from different states"):
        collector_of(vector_of(Own, 2), policy, config_of(advantage="group", group_size=2)).collect()
    with pytest.raises(ConfigError, match="3 environments make no whole groups of 2"):
        collector_of(vector_of(Own, 3), policy, config_of(advantage="group", group_size=2))


# ---- update --------------------------------------------------------------------------------------------------------


class OfSB3(torch.nn.Module):
    """A policy of Stable-Baselines3 as a neutral one."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.inner = policy

    def act(self, obs: Any, deterministic: bool = False) -> Any:
        actions, values, log_prob = self.inner(obs["observation.state"], deterministic)
        return actions, log_prob, values

    def evaluate(self, obs: Any, actions: Any) -> Any:
        values, log_prob, entropy = self.inner.evaluate_actions(obs["observation.state"], actions)
        return log_prob, entropy, values

    def value(self, obs: Any) -> Any:
        return self.inner.predict_values(obs["observation.state"])


@pytest.mark.parametrize(("target_kl", "batch"), [(None, 128), (None, 48), (0.002, 48)])
def test_one_update_is_that_of_stable_baselines3(target_kl: float | None, batch: int) -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    venv = make_vec_env(
        "Pendulum-v1", n_envs=2, seed=0, wrapper_class=gym.wrappers.TimeLimit, wrapper_kwargs={"max_episode_steps": 50}
    )
    args = {"n_epochs": 4, "ent_coef": 0.01, "gamma": 0.95, "learning_rate": 1e-2, "target_kl": target_kl}
    model = PPO(
        "MlpPolicy", venv, n_steps=64, batch_size=batch, seed=1, device="cpu", policy_kwargs={"net_arch": [16]}, **args
    )
    _, callback = model._setup_learn(64, None)
    model.collect_rollouts(venv, callback, model.rollout_buffer, 64)
    buffer, ours = model.rollout_buffer, deepcopy(model.policy)
    before = deepcopy(ours.state_dict())
    collected = Collected(
        obs=[{"observation.state": torch.from_numpy(row.copy())} for row in buffer.observations],
        actions=[torch.from_numpy(row.copy()) for row in buffer.actions],
        log_prob=list(buffer.log_probs),
        values=list(buffer.values),
        rewards=list(buffer.rewards),
        episode_starts=list(buffer.episode_starts),
        valid=[np.ones(2, dtype=bool)] * 64,
        last_values=model.policy.predict_values(torch.as_tensor(model._last_obs)).detach().numpy()[:, 0],
        last_dones=model._last_episode_starts,
    )
    assert buffer.episode_starts.sum() > 2  # time limits were met
    advantages = gae(collected.advantage_inputs(model.gamma, model.gae_lambda, None))
    np.testing.assert_allclose(advantages, buffer.advantages, atol=1e-5)
    advantages = buffer.advantages.copy()

    np.random.seed(5)
    model.train()

    config = config_of(epochs=4, minibatch=batch, ent_coef=0.01, learning_rate=1e-2, target_kl=target_kl)
    update = Update(neutral_of(OfSB3(ours)), config, Contributions(), "cpu")
    metrics = update.run(collected.samples(advantages, np.ones((64, 2), dtype=bool)), np.random.RandomState(5))  # type: ignore[arg-type]
    moved = 0.0
    for name, theirs in model.policy.state_dict().items():
        assert (theirs - ours.state_dict()[name]).abs().max() <= 1e-6, name
        moved = max(moved, (theirs - before[name]).abs().max().item())
    assert moved > 1e-3
    assert (metrics["train/minibatches"] < 4 * math.ceil(128 / batch)) == (target_kl is not None)


def test_rates_and_frozen_parameters_are_the_policys() -> None:
    class Rated(Gaussian):
        def param_groups(self) -> Any:
            return [
                {"params": self.mean.parameters(), "lr_scale": 1.0},
                {"params": self.critic.parameters(), "lr_scale": 10.0},
            ]

    policy = Rated(gym.spaces.Dict({"a": gym.spaces.Box(0, 1, (4,))}), Reach.action_space)
    collected = collector_of(vector_of(Reach, 2), policy, config_of(rollout=8)).collect()
    advantages = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    samples = collected.samples(advantages, np.ones((8, 2), dtype=bool))
    before = deepcopy(policy.state_dict())
    update = Update(neutral_of(policy), config_of(epochs=1, learning_rate=1e-3), Contributions(), "cpu")
    update.run(samples, np.random.default_rng(0))
    change = {name: (value - before[name]).abs().max().item() for name, value in policy.state_dict().items()}
    assert change["log_std"] == 0.0
    assert change["critic.4.weight"] == pytest.approx(1e-2, rel=0.02)  # Adam's first step is the rate
    warm = Update(neutral_of(policy), config_of(epochs=1, critic_warmup=1), Contributions(), "cpu")
    before = deepcopy(policy.state_dict())
    for expected in (False, True):
        warm.run(samples, np.random.default_rng(0))
        moved = not torch.equal(policy.state_dict()["mean.0.weight"], before["mean.0.weight"])
        assert moved is expected


def test_the_ratio_is_one_on_what_was_collected() -> None:
    policy = Tokens(gym.spaces.Dict({"a": gym.spaces.Box(0, 1, (4,))}), Reach.action_space)
    config = config_of(rollout=8, epochs=1, minibatch=7, advantage="group", group_size=2, learning_rate=1e-12)
    collected = collector_of(vector_of(Reach, 4), policy, config).collect()
    samples = collected.samples(np.ones((8, 4), np.float32), np.stack(collected.valid))
    metrics = Update(neutral_of(policy, critic=False), config, Contributions(), "cpu").run(
        samples, np.random.default_rng(0)
    )
    assert metrics["train/ratio_worst"] < 1e-4
    assert "train/value_loss" not in metrics


# ---- bad input -----------------------------------------------------------------------------------------------------


class Odd(Gaussian):
    """Misbehaves in one way."""

    def __init__(self, way: str) -> None:
        super().__init__(gym.spaces.Dict({"a": gym.spaces.Box(0, 1, (4,))}), Reach.action_space)
        self.way, self.calls = way, 0

    def act(self, obs: Any, deterministic: bool = False) -> Any:
        actions, log_prob, value = super().act(obs)
        if self.way == "nan":
            actions[1, 3] = np.nan
        if self.way == "key":
            obs["observation.images.top"]
        if self.way == "log_prob":
            log_prob = log_prob * np.inf
        if self.way == "rows":
            actions = actions[:1]
        return actions, log_prob, None if self.way == "critic" else value

    def chunk(self, actions: Any) -> Any:
        self.calls += 1
        steps = 1 if self.way == "length" and self.calls > 1 else 2
        width = 1 if self.way == "width" else 2
        return super().chunk(actions)[:, :steps, :width]


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("nan", "action for environment 1 is nan (step 1 of its chunk, number 1)"),
        (
            "key",
            "asks for 'observation.images.top', and the observations are observation.environment_state, observation.state",
        ),
        ("log_prob", "gives a log-probability that is"),
        ("rows", "gives actions (1, 4) for 2 observations"),
        ("critic", "has no critic"),
        ("length", "decided 2 steps at first and 1 now"),
        ("width", "steps have 1 numbers each, and the environment takes 2"),
    ],
)
def test_a_policy_that_misbehaves_is_named(way: str, message: str) -> None:
    with pytest.raises(ContributionError) as caught:
        collector_of(vector_of(Reach, 2), Odd(way), config_of(rollout=4)).collect()
    assert message in str(caught.value)


def test_bounds_that_are_infinite_cannot_be_clipped_to() -> None:
    with pytest.raises(ConfigError, match="infinite bounds"):
        Commands(gym.spaces.Box(-np.inf, np.inf, (2,)), clip=True)
    sent, outside = Commands(Reach.action_space, clip=True).checked(np.array([[[2.0, 0.5]]]))
    assert sent.tolist() == [[[1.0, 0.5]]]
    assert sent.dtype == np.float32
    assert outside == 0.5
    assert Commands(Reach.action_space, clip=False).checked(np.array([[[2.0, 0.5]]]))[0].tolist() == [[[2.0, 0.5]]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"advantage": "group"}, "belong together"),
        ({"group_size": 4}, "belong together"),
        ({"advantage": "group", "group_size": 2, "critic_warmup": 1}, "there is no critic"),
    ],
)
def test_settings_that_contradict_each_other(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**given)
