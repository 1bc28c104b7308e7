"""O6: with weights that give the environment's own reward the trainer is the bare one, bit for bit; relabelling likewise."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("budwood_sb3")

PPO = {"n_steps": 128, "batch_size": 64, "n_epochs": 2, "device": "cpu", "seed": 1}


@pytest.mark.parametrize("param", ["static", "simplex"])
def test_o6_terms_that_sum_to_the_reward_under_equal_weights_are_the_bare_trainer(param):
    """HalfCheetah over a time limit, so that the bootstrap takes part. Simplex has equal weights of 1 only while it starts."""
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env

    from budwood import graft

    limit = {"max_episode_steps": 60}
    section = {
        "terms": [{"name": "forward", "info": "reward_forward"}, {"name": "effort", "info": "reward_ctrl"}],
        "criteria": [{"name": "far", "source": "x_position", "stat": "final", "op": ">=", "threshold": 1_000.0}],
        "weights": {"param": param, "scale": None, "w_task": 0.0},
        "outer": None if param == "static" else {"steps": 5, "inner_iterations": 99},
    }
    shaped = graft(stable_baselines3.PPO, {"reward_shaping": section})
    models = []
    for cls in (stable_baselines3.PPO, shaped):
        env = make_vec_env("HalfCheetah-v5", 2, seed=1, env_kwargs=limit)
        models.append(cls("MlpPolicy", env, **PPO).learn(512))
    one, two = (model.policy.state_dict() for model in models)
    assert all(one[name].equal(two[name]) for name in one)


@pytest.mark.parametrize("param", ["static", "simplex", "state"])
def test_o6_relabelling_under_unchanged_weights_changes_no_bit(param):
    """After outer steps that have moved the weights, of the state too."""
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    from budwood import graft
    from budwood_reward_shaping import reach_budget  # noqa: F401 - registers the environment

    section = {
        "terms": [{"name": "speed", "info": "speed"}, {"name": "effort", "info": "effort"}],
        "criteria": [{"name": "far", "source": "x", "stat": "final", "op": ">=", "threshold": 1_000.0}],
        "weights": {"param": param, "scale": None},
        "outer": {"steps": 9, "inner_iterations": 3, "episodes": 1},
    }
    env = VecNormalize(make_vec_env("ReachBudget-v0", 4, seed=1), norm_reward=False)
    model = graft(stable_baselines3.PPO, {"reward_shaping": section})("MlpPolicy", env, **{**PPO, "n_steps": 64})
    model.train = lambda: None  # which would flatten the buffer
    model.learn(1_024)  # four rollouts, the last of them under weights that the third has led to
    buffer = model.rollout_buffer
    weights = buffer._source.combination.weights
    assert not np.allclose(weights[0], weights[1]), "the search has moved"
    before = {name: getattr(buffer, name).copy() for name in ("rewards", "advantages", "returns")}
    buffer.rewards, buffer.advantages = buffer.rewards.copy(), buffer.advantages.copy()
    assert not buffer.stale
    buffer.relabel()
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(buffer, name), value, err_msg=name)
