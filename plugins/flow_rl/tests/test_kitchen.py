import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from budwood.api import ConfigError
from budwood_flow_rl import environments
from budwood_flow_rl.demonstrations import load
from budwood_flow_rl.kitchen import TASKS, Kitchen, cook, main, towards


@pytest.fixture(scope="module")
def kitchen() -> Any:
    pytest.importorskip("gymnasium_robotics")
    made = Kitchen()
    yield made
    made.close()


def test_the_script_cooks_all_where_nothing_wanders(kitchen: Any) -> None:
    observations, actions, rewards, done = cook(kitchen, seed=0, wander=0.0, shake=0.0)
    assert done
    assert rewards.sum() == len(TASKS)
    assert len(observations) == len(actions) < 280
    assert all(kitchen.observation_space.contains(row) for row in observations)
    assert np.abs(actions).max() <= 1


def test_the_hand_goes_where_it_is_sent(kitchen: Any) -> None:
    """Against the simulation: from where it starts, each of six directions shortens the way to a place 10 cm off."""
    for axis in range(3):
        for sign in (-1, 1):
            kitchen.reset(seed=1)
            hand = kitchen.unwrapped.data.site("end_effector").xpos
            place = hand + 0.1 * sign * np.eye(3)[axis]
            for _ in range(12):
                action, _ = towards(kitchen, place)
                kitchen.step(action)
            assert towards(kitchen, place)[1] < 0.06


def test_the_same_seed_cooks_the_same_and_another_does_not(kitchen: Any) -> None:
    one, again, other = (cook(kitchen, seed, wander=0.06, shake=0.2) for seed in (3, 3, 4))
    assert np.array_equal(one[0], again[0])
    assert np.array_equal(one[1], again[1])
    assert not np.array_equal(one[1][:20], other[1][:20])


def test_demonstrations_name_the_environment_that_a_flow_is_tuned_in(kitchen: Any, tmp_path: Path, capsys: Any) -> None:
    main([str(tmp_path / "demos.safetensors"), "--episodes", "1", "--wander", "0"])
    assert "2.00 of 2 subtasks an episode" in capsys.readouterr().out
    demos = load(tmp_path / "demos.safetensors")
    assert demos.terminated.tolist() == [True]
    assert demos.env_id is not None
    env = environments.factory(demos.env_id, demos.env_args, from_file=True)()
    assert env.observation_space == kitchen.observation_space
    assert env.action_space == kitchen.action_space
    env.close()


def test_without_gymnasium_robotics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(ConfigError, match="Franka Kitchen cannot be imported") as raised:
        Kitchen()
    assert "budwood-flow-rl[kitchen]" in str(raised.value.do)
