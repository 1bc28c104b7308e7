"""When a stage ends, and that a controller continues where its state was taken."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budwood.api import CheckpointError, ConfigError
from budwood_lcqa_selector.following import StageCallback
from budwood_lcqa_selector.stages import PRECISION, RECALL, Stage, StageController, Switch, refuse_endless


def controller(**first) -> StageController:
    return StageController([RECALL.model_copy(update=first), PRECISION])


def test_steps_end_a_stage_once():
    stages = controller(max_steps=5)
    assert [stages.stepped(step) for step in range(1, 5)] == [None] * 4
    assert stages.stepped(5) == Switch(1, 5, "max_steps")
    assert stages.stage.name == "precision"
    assert [stages.stepped(step) for step in range(6, 50)] == [None] * 44


def test_plateau_ends_a_stage():
    stages = controller(patience=2, min_delta=0.01)
    values = [0.1, 0.2, 0.205, 0.22, 0.225, 0.229]  # gains: -, .1, no, .02, no, no
    found = [stages.evaluated(10 * (i + 1), value) for i, value in enumerate(values)]
    assert found == [None] * 5 + [Switch(1, 60, "plateau")]


def test_slow_gains_add_up():
    """Gains smaller than min_delta count once their sum reaches it: the best is kept, not the last."""
    stages = controller(patience=3, min_delta=0.01)
    assert [stages.evaluated(i, 0.5 + 0.004 * i) for i in range(30)] == [None] * 30


def test_no_plateau_before_min_steps():
    stages = controller(patience=1, min_steps=30)
    assert [stages.evaluated(step, 0.5) for step in (10, 20)] == [None, None]
    assert stages.evaluated(30, 0.5) == Switch(1, 30, "plateau")


def test_a_new_stage_counts_afresh():
    three = StageController([Stage(name=name, red=1, prompt="x", max_steps=4, patience=2) for name in "abc"])
    assert three.evaluated(1, 0.9) is None
    assert three.stepped(4) == Switch(1, 4, "max_steps")
    assert three.evaluated(5, 0.1) is None, "the best of the stage before is no yardstick: rewards are not comparable"
    assert three.stepped(7) is None
    assert three.stepped(8) == Switch(2, 8, "max_steps")


@pytest.mark.parametrize("dead", [[0.0], [-1.0], [-0.2, 0.0], [0.0, 0.004, 0.001], [float("nan"), -1.0]])
def test_a_dead_reward_is_no_plateau(dead):
    """Nothing is learned while picks are worth no more than an empty one, which earns 0; only its steps end the stage."""
    stages = controller(patience=2, max_steps=500)
    values = itertools.islice(itertools.cycle(dead), 40)
    assert [stages.evaluated(10 * i, value) for i, value in enumerate(values, start=1)] == [None] * 40
    assert stages.stepped(500) == Switch(1, 500, "max_steps")


def test_a_reward_that_comes_to_life_late_has_its_whole_patience():
    stages = controller(patience=2)
    values = [0.0, 0.0, 0.0, 0.0, 0.3, 0.3, 0.3]
    assert [stages.evaluated(i, value) for i, value in enumerate(values)] == [None] * 6 + [Switch(1, 6, "plateau")]


def test_a_reward_that_dies_after_it_has_lived_is_a_plateau():
    stages = controller(patience=2)
    assert [stages.evaluated(i, value) for i, value in enumerate([0.3, 0.0, 0.0])] == [None] * 2 + [
        Switch(1, 2, "plateau")
    ]


def test_no_gain_at_all_is_none_however_small_a_gain_counts():
    stages = controller(patience=2, min_delta=0)
    assert [stages.evaluated(step, 0.5) for step in (1, 2, 3)] == [None, None, Switch(1, 3, "plateau")]


def test_an_evaluation_without_a_number_is_no_gain_and_never_the_best():
    stages = controller(patience=3, min_delta=0)
    nan = float("nan")
    assert [stages.evaluated(step, value) for step, value in enumerate([nan, 0.1, nan, 0.2, nan, nan])] == [None] * 6
    assert stages.best == 0.2
    assert stages.evaluated(6, nan) == Switch(1, 6, "plateau")


@given(st.lists(st.floats(0, 1), max_size=30), st.integers(0, 30))
def test_state_continues_anywhere(values, cut):
    whole, first = controller(patience=2, max_steps=12), controller(patience=2, max_steps=12)

    def feed(stages, part, start):
        return [(stages.stepped(start + i), stages.evaluated(start + i, value)) for i, value in enumerate(part)]

    straight = feed(whole, values, 1)
    before = feed(first, values[:cut], 1)
    second = controller(patience=2, max_steps=12)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + feed(second, values[cut:], 1 + len(values[:cut])) == straight
    assert second.state_dict() == whole.state_dict()


def test_file_round_trip(tmp_path):
    stages = controller(max_steps=1)
    stages.stepped(3)
    stages.save(tmp_path)
    other = controller(max_steps=1)
    other.load(tmp_path)
    assert other.index == 1
    assert other.switches == [Switch(1, 3, "max_steps")]


def test_an_older_state_that_knew_no_best_yet():
    stages = controller(max_steps=5)
    stages.load_state_dict({**stages.state_dict(), "best": None})
    assert stages.state_dict() == controller(max_steps=5).state_dict()


@pytest.mark.parametrize("content", [None, "", "{"])
def test_a_state_that_cannot_be_read(tmp_path, content):
    if content is not None:
        (tmp_path / "stage_state.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"stage_state.json.*cannot be read"):
        controller().load(tmp_path)


def test_a_state_of_other_stages(tmp_path):
    StageController([RECALL]).save(tmp_path)
    with pytest.raises(CheckpointError, match="stages recall; this one has recall, precision"):
        controller().load(tmp_path)


@pytest.mark.parametrize("name", ["eval/reward", "eval_reward"])
def test_evaluations_of_budwood_and_of_trl(name):
    stages = controller(patience=1)
    assert stages.measured(1, {name: 0.5, "eval/loss": 9.0}, "reward") is None
    assert stages.measured(3, {name: 0.5}, "reward") == Switch(1, 3, "plateau")


def test_an_evaluation_without_the_monitored_number():
    stages = controller(max_steps=5)
    with pytest.raises(ConfigError, match=r"'f1' of evaluations.*\n?.*loss, reward"):
        stages.measured(2, {"eval_reward": 0.5, "eval_loss": 9.0, "epoch": 1.0}, "f1")
    stages.stepped(5)
    assert stages.measured(6, {"eval_loss": 9.0}, "f1") is None, "the last stage waits for nothing"


@pytest.mark.parametrize(("max_steps", "noted"), [(None, 1), (5, 0)])
def test_a_stage_that_may_start_dead_is_noted_when_the_run_starts(max_steps, noted):
    said: list[str] = []
    control = SimpleNamespace(log=lambda values: None, note=said.append)
    StageCallback(controller(max_steps=max_steps), "reward", {}, None).on_run_start(control)
    assert len(said) == noted
    assert all("stage 'recall' has no max_steps: as long as" in note for note in said)


def test_a_stage_that_nothing_ends():
    for evaluated, max_steps in ((True, None), (False, 5), (True, 5)):
        refuse_endless(controller(max_steps=max_steps).stages, evaluated, "stages")
    refuse_endless([PRECISION], False, "stages")
    with pytest.raises(ConfigError, match="'recall' would never end"):
        refuse_endless(controller().stages, False, "stages")
