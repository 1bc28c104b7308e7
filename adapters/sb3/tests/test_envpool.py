"""EnvPool: its episodes translated into Stable-Baselines3's, its infos left as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from budwood.api import ConfigError, Contributions, RewardTerm, hookimpl
from budwood_sb3.trainer import build

envpool = pytest.importorskip("envpool")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

HOPPER = {"id": "Hopper-v5", "n_envs": 3, "vec": "envpool", "args": {"max_episode_steps": 7, "num_threads": 1}}


def pool(n: int = 3, seed: int = 0, **args: Any) -> Any:
    from budwood_sb3.envpool import EnvPoolVecEnv

    return EnvPoolVecEnv("Hopper-v5", n, seed, {"num_threads": 1, **args})


def test_episodes_begin_at_once_with_the_last_observation_in_the_infos() -> None:
    """The reference is EnvPool itself, stepped once more after every end, which is how it begins an episode."""
    venv, own = (
        pool(max_episode_steps=7),
        envpool.make("Hopper-v5", env_type="gymnasium", num_envs=3, seed=0, max_episode_steps=7),
    )
    rng = np.random.default_rng(0)
    assert venv.reset() == pytest.approx(own.reset()[0], abs=1e-6)
    for step in range(1, 22):
        actions = rng.uniform(-0.1, 0.1, (3, 3)).astype(np.float32)
        obs, rewards, dones, infos = venv.step(actions)
        expected, expected_rewards, _, truncated, raw = own.step(actions.astype(np.float64))
        assert rewards == pytest.approx(expected_rewards)
        assert (dones == truncated).all()
        assert dones.all() == (step % 7 == 0)
        assert venv.info_arrays()["x_velocity"] == pytest.approx(raw["x_velocity"])
        if dones.all():
            last = np.stack([info["terminal_observation"] for info in infos])
            assert last == pytest.approx(expected, abs=1e-5)
            assert [info["TimeLimit.truncated"] for info in infos] == [True] * 3
            assert [info["episode"]["l"] for info in infos] == [7] * 3
            expected = own.step(actions.astype(np.float64))[0]  # ignored actions: the first observation
        assert obs == pytest.approx(expected, abs=1e-5)
        assert obs.dtype == np.float32


def test_a_fall_is_no_timeout_and_leaves_the_others_alone() -> None:
    venv = pool(n=2)
    venv.reset()
    for _ in range(200):
        _, _, dones, infos = venv.step(np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
        if dones.any():
            break
    ended = int(np.flatnonzero(dones)[0])
    assert infos[ended]["TimeLimit.truncated"] is False
    if not dones.all():
        assert infos[1 - ended] == {}


def test_seeds_are_those_of_the_next_reset() -> None:
    venv = pool(seed=1)
    first = venv.reset()
    venv.seed(2)
    second = venv.reset()
    assert not np.allclose(first, second)
    venv.seed(1)
    assert (venv.reset() == first).all()


class Terms:
    @hookimpl
    def reward_terms(self, run: Any) -> Any:
        yield RewardTerm("velocity", info_key="x_velocity", weight=0.5)
        yield RewardTerm("asked", fn=lambda batch: batch.info("x_velocity"), weight=0.5)


def test_it_trains_with_terms_from_its_arrays(make_run: Any, train: Any, events: Any) -> None:
    run = make_run({"algo": "ppo", "args": {"n_steps": 16, "batch_size": 16}, "total_timesteps": 96}, HOPPER)
    seen = events()
    trainer = train(run, Terms(), events=seen)
    logged = seen.logged[-1][1]
    assert logged["terms/terms.velocity"] == logged["terms/terms.asked"] != 0.0
    assert logged["rollout/ep_len_mean"] == 7
    velocities: list[Any] = []
    evaluation = trainer.evaluate(4, 5, lambda batch: velocities.append(batch.info("x_velocity")))
    assert evaluation.lengths.tolist() == [7] * 4
    assert (trainer.evaluate(4, 5).returns == evaluation.returns).all()
    assert [len(column) for column in velocities] == [3] * 7 + [1] * 7
    trainer.close()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"id": "Hoper-v5"},
            "env.id: EnvPool has no environment 'Hoper-v5'. Did you mean 'Hopper-v5'? Other environments run with vec: dummy.",
        ),
        (
            {"args": {"bogus": 1}},
            "env.args: EnvPool refuses the arguments of Hopper-v5: Config.__new__() got an unexpected keyword argument "
            "'bogus'.",
        ),
    ],
)
def test_bad_input(make_run: Any, section: dict[str, Any], message: str) -> None:
    run = make_run({"algo": "ppo", "total_timesteps": 96}, {**HOPPER, **section})
    with pytest.raises(ConfigError) as raised:
        build(run, Contributions())
    assert str(raised.value) == message


def test_there_is_nothing_to_wrap(make_run: Any) -> None:
    run = make_run({"algo": "ppo", "total_timesteps": 96}, HOPPER)
    with pytest.raises(
        ConfigError, match=r"^env.vec: EnvPool steps its environments in C\+\+, so a plugin's build_env"
    ):
        build(run, Contributions(wrap_env=lambda factory, role: factory))
