"""ReachBudget: its dynamics against the closed form, its state, and the window of weights with a real inner loop (O7)."""

from __future__ import annotations

import numpy as np
import pytest

from budwood.api import StepBatch
from budwood_reward_shaping.reach_budget import BUDGET, DISTANCE, DISTRACTORS, DT, GAIN, STEPS, WINDOW, ReachBudget


def play(rho: float) -> tuple[float, float, float]:
    env = ReachBudget()
    env.reset()
    native = 0.0
    for t in range(STEPS):
        _, reward, ended, truncated, info = env.step(np.array([rho * DT * (STEPS - t) / 2]))
        native += reward
        assert ended == (t == STEPS - 1)
        assert not truncated
        assert info["speed"] == pytest.approx(env.v * DT)
        assert info["effort"] <= 0
    return info["x"], env.spent, native


def test_figures_of_the_closed_form():
    assert pytest.approx(21.46, abs=0.005) == GAIN
    assert pytest.approx((0.186, 0.305), abs=5e-4) == WINDOW
    for rho in (0.1, 0.2, 0.25, 0.3, 0.4):
        x, spent, native = play(rho)
        assert x == pytest.approx(GAIN * rho)
        assert spent == pytest.approx(GAIN * rho**2 / 2)
        assert native == float(x >= DISTANCE and spent <= BUDGET) == float(WINDOW[0] <= rho <= WINDOW[1])


def test_those_controls_are_optimal():
    """No small change of the controls earns more of rho speed + effort."""
    rho, rng = 0.25, np.random.default_rng(0)
    best = rho * DT * (STEPS - np.arange(STEPS)) / 2

    def earned(controls: np.ndarray) -> float:
        env = ReachBudget()
        env.reset()
        infos = [env.step(np.array([a]))[4] for a in controls]
        return sum(rho * info["speed"] + info["effort"] for info in infos)

    assert all(earned(best) > earned(best + 0.01 * rng.normal(size=STEPS)) for _ in range(50))


def test_gymnasium_accepts_it_and_its_state_continues():
    import gymnasium as gym
    from gymnasium.utils.env_checker import check_env

    env = gym.make("budwood_reward_shaping.reach_budget:ReachBudget-v0")
    with pytest.warns(UserWarning, match="infinity"):
        check_env(env.unwrapped, skip_render_check=True)
    first, second = ReachBudget(), ReachBudget()
    first.reset()
    for _ in range(20):
        first.step(np.array([0.3]))
    second.reset()
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        a, b = first.step(np.array([0.2])), second.step(np.array([0.2]))
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:] == b[1:]


def test_distractors_are_what_they_say():
    batch = StepBatch()
    batch.next_obs = np.array([[2.0, 0.5, 0.75], [-1.0, -2.0, 0.0]], dtype=np.float32)
    batch.actions, batch.dones = np.array([[0.4], [-3.0]]), np.zeros(2, dtype=bool)
    expected = {
        "push": [0.04, -0.1],
        "brake": [-0.05, -0.2],
        "rush": [0.025, 0.4],
        "early": [0.0375, 0.0],
        "late": [0.0125, -0.2],
        "home": [-0.2, -0.1],
        "waves": [0.1 * np.sin(6.0), 0.1 * np.sin(-3.0)],
        "clock": [0.1, 0.1],
    }
    assert {term.name: pytest.approx(term.fn(batch).tolist()) for term in DISTRACTORS} == expected


def trained(rho: float, seed: int, steps: int) -> bool:
    """Whether Stable-Baselines3's PPO does the task when it maximises rho speed + effort and nothing else."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper

    class Shaped(VecEnvWrapper):
        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            obs, _, dones, infos = self.venv.step_wait()
            return obs, np.array([rho * i["speed"] + i["effort"] for i in infos], dtype=np.float32), dones, infos

    model = PPO(
        "MlpPolicy", Shaped(DummyVecEnv([ReachBudget] * 20)), n_steps=50, batch_size=500, learning_rate=2e-3, gamma=1.0,
        gae_lambda=1.0, policy_kwargs={"log_std_init": -1.0}, seed=seed, device="cpu",
    )  # fmt: skip
    model.learn(steps)
    env = ReachBudget()
    obs, _ = env.reset()
    reward = 0.0
    for _ in range(STEPS):
        obs, reward, *_ = env.step(model.predict(obs, deterministic=True)[0])
    return bool(reward)


@pytest.mark.parametrize(("rho", "steps", "success"), [(0.1, 8_000, False), (0.25, 16_000, True), (1.0, 16_000, False)])
def test_o7_with_a_real_inner_loop(rho, steps, success):
    assert trained(rho, 0, steps) == success


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0, 3.0])
def test_o7_window(rho):
    assert trained(rho, seed=1, steps=40_000) == (WINDOW[0] <= rho <= WINDOW[1])
