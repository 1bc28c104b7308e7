"""Ten faults of the drill; all of them:  python tests/faults/drill.py --faults 200"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

pytest.importorskip("budwood_sb3")
pytest.importorskip("budwood_reward_shaping")
sys.path.insert(0, str(Path(__file__).parent))
from drill import Outcome, World, table
from kinds import GENERAL, Fault, every_call, places

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World("sb3", tmp_path_factory.mktemp("faults"))


DRAWN = dict.fromkeys(draw for draw in GENERAL)


@pytest.mark.parametrize("draw", DRAWN, ids=[draw.__name__ for draw in DRAWN])
def test_a_run_that_was_struck_ends_as_the_untouched_one(world: World, draw) -> None:
    outcome = world.suffer(draw(random.Random(f"0 {draw.__name__}"), world.counts), draw.__name__)
    assert outcome.problem == "", outcome


def test_a_fault_that_changes_a_result_is_found(world: World) -> None:
    """The drill itself: weights that differ in their last bits after the strike are not the same run."""

    def arm(strike, _output) -> None:
        def nudge() -> None:
            import torch

            strike.now()
            torch.manual_seed(7)

        every_call(*places()["update"], nudge)

    outcome = world.suffer(Fault("drift", "", arm, goes_on=True), "drift")
    assert outcome.problem.startswith("not the same run: state")


def test_what_does_not_strike_is_no_survivor(world: World) -> None:
    assert world.suffer(Fault("none", "", lambda *_: None, goes_on=True), "none").problem == "the fault did not strike"


def test_the_table_counts_survivors_by_kind() -> None:
    rows = [
        Outcome("sb3", "killed", "", "signal 9", seconds, lost, problem)
        for seconds, lost, problem in [(0.1, 0, ""), (0.3, 512, "x")]
    ]
    text = table([*rows, Outcome("trl", "clock jumps back", "", "finished", None, 0, "")])
    assert "| killed | 2 | 1 | 256, 512 | 0.2, 0.3 |" in text
    assert "| clock jumps back | 1 | 1 | 0, 0 | goes on |" in text
    assert text.endswith("| all | 3 | 2 | | |")
