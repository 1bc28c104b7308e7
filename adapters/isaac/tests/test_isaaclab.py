"""The real Isaac Lab, without Isaac Sim and without a GPU: Newton's physics on the CPU.

Runs in the environment of this member alone (README.md says how): python -m pytest -m slow adapters/isaac/tests
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("isaaclab")
pytestmark = pytest.mark.slow

from budwood_isaac import tasks  # noqa: E402
from budwood_isaac.process import Remote  # noqa: E402
from budwood_isaac.vec import IsaacVecEnv  # noqa: E402

CARTPOLE = "budwood_isaac.cartpole:Budwood-Cartpole"
CONFIG = Path(__file__).parents[3] / "configs" / "isaac" / "cartpole.yaml"
EPISODE = 300
"""Steps: 5 s at 60 steps a second."""


def pushes(steps: int, n: int) -> Any:
    return np.random.default_rng(0).uniform(-1, 1, (steps, n, 1)).astype(np.float32)


@pytest.fixture
def cartpole() -> Iterator[IsaacVecEnv]:
    venv = IsaacVecEnv(Remote(tasks.Task(CARTPOLE, 16, 3, device="cpu").launch), CARTPOLE)
    yield venv
    venv.close()


def test_rewards_are_the_authors_to_the_bit_and_terms_add_up_to_them(cartpole: IsaacVecEnv) -> None:
    """The bare environment of the same seed runs in this process, ours in its own."""
    assert cartpole.author_weights == {
        "alive": 1.0,
        "terminating": -2.0,
        "pole_pos": -1.0,
        "cart_vel": -0.01,
        "pole_vel": -0.005,
        "success_rate": 0.0,
    }
    cartpole.seed(3)
    steps = [(cartpole.reset(), np.zeros(0))]
    ended = 0
    for push in pushes(EPISODE + 10, 16):
        obs, rewards, dones, infos = cartpole.step(push)
        steps.append((obs, rewards))
        arrays = cartpole.info_arrays()
        total = sum(abs(weight) * arrays[f"reward/{name}"] for name, weight in cartpole.author_weights.items())
        assert total == pytest.approx(rewards, rel=1e-5, abs=1e-6)
        for i in np.flatnonzero(dones):
            ended += 1
            assert infos[i]["episode"]["l"] <= EPISODE
            assert not np.allclose(infos[i]["terminal_observation"], obs[i])
    assert ended >= 16
    for (obs, rewards), (bare_obs, bare_rewards) in zip(steps, bare_steps(), strict=True):
        assert np.array_equal(obs, bare_obs)
        assert np.array_equal(rewards, bare_rewards)


def bare_steps() -> list[Any]:
    """(observations, rewards) of every step, the reset's first."""
    import gymnasium
    from isaaclab.app import launch_simulation

    cfg = tasks.Task(CARTPOLE, 16, 3).configuration("cpu")
    with launch_simulation(cfg, {"headless": True, "device": "cpu"}):
        env = gymnasium.make("Budwood-Cartpole", cfg=cfg)
        seen = [(env.reset(seed=3)[0]["policy"].numpy().copy(), np.zeros(0))]
        for push in pushes(EPISODE + 10, 16):
            obs, reward, *_ = env.step(torch.from_numpy(push))
            seen.append((obs["policy"].numpy().copy(), reward.numpy().copy()))
        env.close()
    return seen


def test_ppo_learns_to_balance(tmp_path: Path) -> None:
    """The run of the configuration, against uniformly random actions on as many episodes."""
    import budwood

    result = budwood.run(CONFIG, output=str(tmp_path), tracking__enabled=False)
    assert result.metrics["eval/return_mean"] > 3.0
    assert random_returns(64, 1).mean() < -2.0


def random_returns(n: int, seed: int) -> Any:
    """Returns of the first episode of ``n`` environments under uniformly random actions."""
    venv = IsaacVecEnv(Remote(tasks.Task(CARTPOLE, n, seed, device="cpu").launch), CARTPOLE)
    venv.seed(seed)
    venv.reset()
    returns = np.full(n, np.nan)
    generator = np.random.default_rng(seed)
    while np.isnan(returns).any():
        _, _, dones, infos = venv.step(generator.uniform(-1, 1, (n, 1)).astype(np.float32))
        for i in np.flatnonzero(dones & np.isnan(returns)):
            returns[i] = infos[i]["episode"]["r"]
    venv.close()
    return returns


def test_a_task_of_the_direct_workflow_runs_without_terms() -> None:
    from budwood.api import ContributionError
    from budwood_isaac.cartpole import robot

    name = "Isaac-Cartpole-Direct"
    changes = {
        "scene": {
            "clone_in_fabric": False,
            "ground": None,
            "light": None,
            "cartpole": {"spawn": {"usd_path": str(robot())}},
        }
    }
    venv = IsaacVecEnv(Remote(tasks.Task(name, 4, 0, changes, "cpu").launch), name)
    assert venv.author_weights is None
    venv.reset()
    _, rewards, _, _ = venv.step(np.zeros((4, 1), np.float32))
    assert np.isfinite(rewards).all()
    with pytest.raises(ContributionError, match="has no reward manager"):
        venv.info_arrays()["reward/alive"]
    venv.close()


def test_a_mistyped_task_is_answered_with_the_nearest() -> None:
    from budwood.api import ConfigError

    with pytest.raises(
        ConfigError, match=r"^env.id: no task of Isaac Lab is called 'Isaac-Cartpol'. Did you mean 'Isaac-Cart"
    ):
        Remote(tasks.Task("Isaac-Cartpol", 4, 0).launch)


def test_the_oracle_is_printed_for_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    from budwood_isaac.__main__ import main

    assert main([CARTPOLE]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "terms: [alive, terminating, pole_pos, cart_vel, pole_vel]",
        "weights: {w_task: 0.0, scale: null, bounds: [0.0005, 20], initial: {alive: 1, terminating: 2, pole_pos: 1, "
        "cart_vel: 0.01, pole_vel: 0.005}}",
        "# left at 0 by the author: success_rate",
    ]
