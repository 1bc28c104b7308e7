"""Ten faults of the drill; all of them:  python tests/faults/drill.py

Four more, one of two processes among them:  pytest tests/faults -m slow
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("budwood_sb3")
pytest.importorskip("budwood_reward_shaping")

sys.path.insert(0, str(Path(__file__).parent))
from drill import KINDS, TURNS, World, drawn
from kinds import GENERAL, both_resume, no_more_files, terminate
from ranks import kill_rank
from rows import Outcome, read, table, write
from strikes import Fault, Strike, every_call, places

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def world_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], World]]:
    made: dict[str, World] = {}
    with ExitStack() as stack:

        def make(name: str) -> World:
            if name not in made:
                made[name] = World(name, tmp_path_factory.mktemp("faults"), stack)
            return made[name]

        yield make


@pytest.fixture
def world(world_of: Callable[[str], World]) -> World:
    return world_of("sb3")


BY_HAND = {terminate, both_resume, no_more_files}
"""Their likes are in ``tests/test_stops.py``, ``core/tests/test_folder.py`` and among the others here."""
DRAWN = [
    pytest.param(draw, id=draw.__name__, marks=[pytest.mark.slow] if draw in BY_HAND else [])
    for draw in dict.fromkeys(GENERAL)
]


@pytest.mark.parametrize("draw", DRAWN)
def test_a_run_that_was_struck_ends_as_the_untouched_one(world: World, draw) -> None:
    number = GENERAL.index(draw)
    outcome = world.suffer(draw(random.Random(f"0 {draw.__name__}"), *world.counts), 0, number)
    assert outcome.problem == "", outcome


@pytest.mark.slow
def test_one_of_two_processes_is_killed(world_of: Callable[[str], World]) -> None:
    world = world_of("sb3-two")
    outcome = world.suffer(kill_rank(random.Random(1), *world.counts), 0, 0)
    assert outcome.problem == "", outcome


def test_a_fault_that_changes_a_result_is_found(world: World) -> None:
    """The drill itself: weights that differ in their last bits after the strike are not the same run."""

    def arm(strike: Strike, _output: Path) -> None:
        def nudge() -> None:
            import torch

            strike.now()
            torch.manual_seed(7)

        every_call(*places()["update"], nudge)

    outcome = world.suffer(Fault("drift", "", arm, goes_on=True), 0, 101)
    assert outcome.problem.startswith("not the same run: state")


def test_what_does_not_strike_is_no_survivor(world: World) -> None:
    outcome = world.suffer(Fault("none", "", lambda *_: None, goes_on=True), 0, 102)
    assert outcome.problem == "the fault did not strike"


def test_what_is_drawn_follows_from_the_seed_and_reaches_every_world_and_kind() -> None:
    found = [(name, draw.__name__, rng.random()) for name, draw, rng in drawn(0, 200, list(KINDS))]
    assert found[:60] == [(name, draw.__name__, rng.random()) for name, draw, rng in drawn(0, 60, list(KINDS))]
    assert set(TURNS) == set(KINDS)
    assert {(name, kind) for name, kind, _ in found} == {
        (name, draw.__name__) for name, draws in KINDS.items() for draw in draws
    }


ROWS = [
    *(
        Outcome(0, number, "sb3-two", "killed", "", "signal 9", seconds, lost, problem)
        for number, (seconds, lost, problem) in enumerate([(0.1, 0.0, ""), (0.3, 0.5, "x")])
    ),
    Outcome(0, 2, "trl", "clock jumps back", "", "finished", None, 0.0, ""),
]


def test_the_table_counts_survivors_by_kind_and_adapter() -> None:
    text = table(ROWS)
    assert "| killed | 2 | 1 | 0.25, 0.50 | 0.2, 0.3 |" in text
    assert "| clock jumps back | 1 | 1 | 0.00, 0.00 | goes on |" in text
    assert "| **sb3** | 2 | 1 |" in text
    assert "| **all** | 3 | 2 |" in text


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path / "rows.csv", ROWS)
    assert read(tmp_path / "rows.csv") == ROWS


def test_the_page_shows_the_table_of_its_rows() -> None:
    outcomes = read(DOCS / "reliability" / "faults.csv")
    assert table(outcomes) in (DOCS / "reliability.md").read_text()
