"""Reward terms at the VecEnv: what they see, what they make, and what is said when they cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from budwood.api import Contributed, ContributionError, Contributions, RewardTerm, StepBatch
from budwood_sb3 import vec


def bound(*terms: RewardTerm, combination: Any = None, n: int = 2, env: str = "Point-v0") -> vec.TermVecEnv:
    venv = make_vec_env(env, n_envs=n, seed=0)
    claimed = None if combination is None else Contributed(combination, "shape", "budwood-shape 1.0")
    contributed = [Contributed(term, "shape", "budwood-shape 1.0") for term in terms]
    return vec.TermVecEnv(venv, Contributions(reward_terms=contributed, reward_combination=claimed))


def stepping(env: Any, count: int, action: float = 0.2) -> Iterator[tuple[Any, ...]]:
    env.reset()
    for _ in range(count):
        yield env.step(np.full((env.num_envs, 1), action, np.float32))


def steps(env: Any, count: int, action: float = 0.2) -> list[tuple[Any, ...]]:
    return list(stepping(env, count, action))


def test_columns_hold_what_the_environment_and_the_terms_say_and_the_reward_is_their_weighted_sum() -> None:
    env = bound(
        RewardTerm("speed", info_key="speed", weight=2.0),
        RewardTerm("left", fn=lambda batch: (batch.next_obs[:, 0] < 0).astype(float), weight=0.5),
        RewardTerm("effort", info_key="effort", weight=-1.0),
    )
    assert [column.name for column in env.columns] == ["env.reward", "shape.speed", "shape.left", "shape.effort"]
    for obs, reward, _, infos in stepping(env, 5):
        expected = np.stack(
            [1 - np.abs(obs[:, 0]), [i["speed"] for i in infos], obs[:, 0] < 0, [i["effort"] for i in infos]], axis=1
        )
        assert env.terms == pytest.approx(expected, abs=1e-6)
        assert reward == pytest.approx(env.terms @ [1.0, 2.0, 0.5, -1.0], abs=1e-6)
        assert reward.dtype == np.float32


def test_the_returned_reward_may_be_written_to() -> None:
    env = bound(RewardTerm("speed", info_key="speed"))
    ((_, reward, _, _),) = steps(env, 1)
    kept = env.shaped.copy()
    reward += 100
    assert (env.shaped == kept).all()


def test_a_function_sees_the_step_as_it_was_also_where_an_episode_ended() -> None:
    seen: list[dict[str, Any]] = []

    def look(batch: StepBatch) -> Any:
        seen.append({name: np.copy(getattr(batch, name)) for name in StepBatch.__slots__ if name != "infos"})
        return np.zeros(2)

    env = bound(RewardTerm("look", fn=look))
    history = steps(env, 26)
    for before, after in pairwise(seen):
        continuing = ~before["dones"]
        assert (after["obs"][continuing] == before["next_obs"][continuing]).all()
    last = seen[24]
    assert last["dones"].all()
    assert last["timeouts"].all()
    obs, _, _, infos = history[24]
    assert (last["next_obs"] == np.stack([info["terminal_observation"] for info in infos])).all()
    assert not (last["next_obs"] == obs).any()
    assert (seen[25]["obs"] == obs).all()
    assert not seen[23]["timeouts"].any()


def test_an_episode_that_ends_by_itself_is_no_timeout() -> None:
    timeouts = []
    env = bound(
        RewardTerm("look", fn=lambda batch: timeouts.append((batch.dones.any(), batch.timeouts.any())) or np.zeros(1)),
        n=1,
    )
    env.reset()
    env.venv.envs[0].unwrapped.state[:] = 2.9, 3.0  # type: ignore[attr-defined]
    env.step(np.ones((1, 1), np.float32))
    assert timeouts == [(True, False)]


def test_dict_observations_reach_the_terms() -> None:
    env = bound(RewardTerm("place", fn=lambda batch: batch.next_obs["place"][:, 0]), env="PointDict-v0")
    for obs, _, dones, infos in stepping(env, 25):
        place = obs["place"] if not dones.any() else np.stack([i["terminal_observation"]["place"] for i in infos])
        assert (env.terms[:, 1] == place[:, 0]).all()


class Wrong:
    """A combination that returns what it is told to."""

    version, needs_obs = 0, False

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer = answer

    def bind(self, columns: Any) -> None: ...

    def __call__(self, terms: Any, obs: Any) -> Any:
        return self.answer(terms)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            RewardTerm("gone", info_key="velocity"),
            "plugins.shape: reward term shape.gone reads the info key 'velocity', which environment 0 does not give. "
            "Asked for by budwood-shape 1.0. It gives effort, speed.",
        ),
        (
            RewardTerm("nan", fn=lambda batch: np.array([0.0, np.nan])),
            "plugins.shape: reward term shape.nan is nan in environment 1. Asked for by budwood-shape 1.0. "
            "A term must be a finite number at every step.",
        ),
        (
            RewardTerm("inf", fn=lambda batch: np.array([np.inf, 0.0]), weight=0.0),
            "plugins.shape: reward term shape.inf is inf in environment 0. Asked for by budwood-shape 1.0. "
            "A term must be a finite number at every step.",
        ),
        (
            RewardTerm("scalar", fn=lambda batch: 1.0),  # type: ignore[arg-type,return-value]
            "plugins.shape: reward term shape.scalar returned shape (), and 2 environments need (2,). "
            "Asked for by budwood-shape 1.0.",
        ),
        (
            RewardTerm("column", fn=lambda batch: batch.rewards[:, None]),
            "plugins.shape: reward term shape.column returned shape (2, 1), and 2 environments need (2,). "
            "Asked for by budwood-shape 1.0.",
        ),
        (
            RewardTerm("asks", fn=lambda batch: batch.info("height")),
            "plugins.shape: reward term shape.asks cannot be computed: the environment gives no info key 'height'; "
            "it gives effort, speed. Asked for by budwood-shape 1.0.",
        ),
        (
            RewardTerm("broken", fn=lambda batch: 1 / 0),  # type: ignore[arg-type,return-value]
            "plugins.shape: reward term shape.broken raised ZeroDivisionError: division by zero. "
            "Asked for by budwood-shape 1.0. Run again with --debug to see where.",
        ),
    ],
)
def test_a_term_that_misbehaves_is_named(term: RewardTerm, message: str) -> None:
    with pytest.raises(ContributionError) as raised:
        steps(bound(term), 1)
    assert str(raised.value) == message


def test_an_info_that_is_no_number_is_named() -> None:
    class Talks(gym.Wrapper):
        def step(self, action: Any) -> Any:
            obs, reward, terminated, truncated, info = self.env.step(action)
            return obs, reward, terminated, truncated, {**info, "speed": np.ones(3)}

    venv = make_vec_env("Point-v0", n_envs=2, seed=0, wrapper_class=Talks)
    terms = [Contributed(RewardTerm(key, info_key=key), "shape", "budwood-shape 1.0") for key in ("effort", "speed")]
    with pytest.raises(ContributionError) as raised:
        steps(vec.TermVecEnv(venv, Contributions(reward_terms=terms)), 1)
    assert str(raised.value) == (
        "plugins.shape: reward term shape.speed reads the info key 'speed', which is no number in environment 0: "
        "array([1., 1., 1.]). Asked for by budwood-shape 1.0."
    )


def test_a_reward_of_the_environment_that_is_not_finite_is_its_own_fault() -> None:
    venv = make_vec_env(
        "Point-v0", n_envs=2, wrapper_class=lambda env: gym.wrappers.TransformReward(env, lambda r: np.nan)
    )
    terms = [Contributed(RewardTerm("speed", info_key="speed"), "shape", "budwood-shape 1.0")]
    with pytest.raises(ContributionError, match=r"^env.id: environment 0 gave the reward nan.$"):
        steps(vec.TermVecEnv(venv, Contributions(reward_terms=terms)), 1)


@pytest.mark.parametrize(
    ("answer", "what"),
    [(lambda terms: terms[:, :1], "shape (2, 1)"), (lambda terms: terms[:, 0] * np.nan, "a value that is not finite")],
)
def test_a_combination_that_misbehaves_is_named(answer: Any, what: str) -> None:
    with pytest.raises(ContributionError) as raised:
        steps(bound(combination=Wrong(answer)), 1)
    assert str(raised.value) == (
        f"plugins.shape: the reward combination returned {what} for 2 environments. Asked for by budwood-shape 1.0. "
        "It must return (2,) finite numbers for (2, 1) terms."
    )


def test_normalised_observations_stay_out_of_the_terms() -> None:
    """VecNormalize is outside: terms see raw observations, and it scales the shaped reward."""
    env = bound(RewardTerm("place", fn=lambda batch: batch.obs[:, 0]))
    normal = VecNormalize(env, norm_obs=True, norm_reward=True)
    normal.reset()
    for _ in range(5):
        raw = normal.get_original_obs()
        normal.step(np.ones((2, 1), np.float32))
        assert (env.terms[:, 1] == raw[:, 0]).all()
        assert (normal.get_original_reward() == env.shaped.astype(np.float32)).all()


def test_the_summary_is_the_mean_since_the_last_and_the_shaped_return_of_finished_episodes() -> None:
    env = bound(RewardTerm("effort", info_key="effort", weight=3.0), n=1)
    rewards = [reward[0] for _, reward, _, _ in steps(env, 30, action=0.5)]
    summary = env.summary()
    assert summary["terms/shape.effort"] == pytest.approx(-0.25)
    assert summary["rollout/shaped_return"] == pytest.approx(sum(rewards[:25]), rel=1e-5)
    assert "terms/shape.effort" not in env.summary()


def test_its_state_makes_another_go_on() -> None:
    terms = [RewardTerm("effort", info_key="effort"), RewardTerm("obs", fn=lambda batch: batch.obs[:, 0])]
    one, two = bound(*terms, n=1), bound(*terms, n=1)
    steps(one, 30)
    steps(two, 1)
    two.load_state_dict(one.state_dict())
    two.venv = one.venv
    assert two.summary() == one.summary()
    assert (two.obs == one.obs).all()
