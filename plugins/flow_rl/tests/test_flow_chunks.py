"""Chains as actions of an environment: what is cut out, scaled, executed, summed, and counted."""

from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest

from budwood.api import BindingError, ContributionError
from budwood_flow_rl.chunks import ActionScale, ChainActions, ChainShape

SHAPE = ChainShape(steps=2, horizon=3, execute=2)


class Scripted(gym.Env):
    """Reward 1, 2, 3, ...; ends after ``length`` steps as ``how`` says; remembers what it was given."""

    def __init__(self, length=5, how=(True, False), low=-1.0, high=1.0):
        self.observation_space = gym.spaces.Box(-9, 9, (1,), np.float32)
        self.action_space = gym.spaces.Box(
            np.broadcast_to(np.float32(low), 2), np.broadcast_to(np.float32(high), 2), dtype=np.float32
        )
        self.length, self.how, self.given, self.time = length, how, [], 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.given.append(action)
        self.time += 1
        over = self.time == self.length
        terminated, truncated = (flag and over for flag in self.how)
        return np.full(1, self.time, np.float32), float(self.time), terminated, truncated, {"time": self.time}


def chain(x):
    """(A,) whose last element of the chain is ``x`` (H, D), the others being out of any bounds."""
    return np.concatenate([np.full(2 * x.size, 77.0), x.ravel()]).astype(np.float32)


def test_a_decision_executes_the_first_actions_of_the_last_element():
    env = ChainActions(Scripted(), SHAPE)
    assert env.action_space.shape == (3 * 3 * 2,)
    env.reset()
    x = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    obs, reward, terminated, truncated, info = env.step(chain(x))
    np.testing.assert_allclose(env.unwrapped.given, x[:2], rtol=1e-6)
    assert (obs[0], reward, terminated, truncated, info["time"]) == (2, 1 + 2, False, False, 2)


def test_the_drawn_step_of_a_hybrid_chain_is_no_action():
    env = ChainActions(Scripted(), ChainShape(2, 3, 2, extra=1))
    assert env.action_space.shape == (3 * 3 * 2 + 1,)
    env.reset()
    env.step(np.append(chain(np.full((3, 2), 0.5)), 1.0))
    np.testing.assert_allclose(env.unwrapped.given, 0.5)


@pytest.mark.parametrize("how", [(True, False), (False, True), (True, True)])
def test_an_episode_that_ends_inside_a_chunk_ends_the_decision(how):
    env = ChainActions(Scripted(length=3, how=how), SHAPE)
    env.reset()
    assert env.step(chain(np.zeros((3, 2))))[2:4] == (False, False)
    obs, reward, *ended, _ = env.step(chain(np.zeros((3, 2))))
    assert (obs[0], reward, tuple(ended)) == (3, 3.0, how)
    assert len(env.unwrapped.given) == 3, "the rest of the chunk is not executed"


@pytest.mark.parametrize(
    ("low", "high", "data", "x", "expected", "changed"),
    [
        (0.0, 4.0, None, [0.5, -1.5], [3.0, 0.0], 1),  # [-1, 1] is the environment's range
        (-np.inf, np.inf, None, [5.0, -0.5], [5.0, -0.5], 0),  # no range: x is the action
        (-np.inf, 2.0, None, [5.0, -5.0], [2.0, -5.0], 1),  # half a range clips
        (-9.0, 9.0, ([1.0, 0.0], [2.0, 0.5]), [0.5, -3.0], [2.0, -0.5], 1),  # the range of the data
        (-1.0, 1.0, ([1.0, 0.0], [2.0, 0.5]), [0.5, 0.5], [1.0, 0.25], 1),  # data beyond the environment's bounds
    ],
)
def test_actions_are_scaled_and_clipped_by_one_rule(low, high, data, x, expected, changed):
    space = Scripted(low=low, high=high).action_space
    scale = ActionScale(space, None if data is None else tuple(np.array(part) for part in data))
    actions, count = scale(np.array([x]))
    np.testing.assert_allclose(actions, [expected], rtol=1e-6)
    assert (count, actions.dtype) == (changed, np.float32)


def test_counters_are_saved():
    env, other = ChainActions(Scripted(), SHAPE), ChainActions(Scripted(), SHAPE)
    env.reset()
    env.step(chain(np.array([[2.0, 0.0], [0.0, 0.0], [5.0, 5.0]])))
    assert (env.decisions, env.saturated) == (1, 0.25)
    other.load_state_dict(env.state_dict())
    assert other.state_dict() == env.state_dict()


def test_what_cannot_be_acted_on_is_refused_in_a_sentence():
    env = ChainActions(Scripted(), SHAPE)
    env.reset()
    with pytest.raises(
        ContributionError, match=r"plugins.flow_rl: the flow policy gave an action that is not finite\."
    ):
        env.step(chain(np.full((3, 2), np.nan)))
    with pytest.raises(
        BindingError, match=r"env.id: a flow policy gives continuous actions, and .* takes Discrete\(2\)"
    ):
        ChainActions(gym.make("CartPole-v1"), SHAPE)
    pictures = gym.wrappers.ReshapeObservation(Scripted(), (1, 1))
    with pytest.raises(
        BindingError, match=r"env.id: a flow policy on states reads a vector, and the environment shows"
    ):
        ChainActions(pictures, SHAPE)


@pytest.mark.parametrize(("call", "what"), [("reset", "observation"), ("step", "observation"), ("step", "reward")])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_of_the_environment_that_are_not_finite_are_not_blamed_on_the_policy(call, what, bad):
    class Broken(Scripted):
        def reset(self, *, seed=None, options=None):
            obs, info = super().reset(seed=seed)
            return (np.full(1, bad, np.float32) if call == "reset" else obs), info

        def step(self, action):
            obs, reward, *rest = super().step(action)
            return (np.full(1, bad, np.float32), reward, *rest) if what == "observation" else (obs, bad, *rest)

    env = ChainActions(Broken(), SHAPE)
    said = rf"^env.id: {call} of the environment Broken gave an? {what} that is not finite\..*not the cause\.$"

    def played():
        env.reset(seed=3)
        env.step(chain(np.full((3, 2), 0.5)))

    with pytest.raises(ContributionError) as error:
        played()
    assert re.match(said, str(error.value)), str(error.value)
