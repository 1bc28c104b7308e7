"""What a person sees during a run, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import numpy as np
import pytest

from budwood.api import StepBatch
from budwood.progress import Pace, PlainLines, Progress, TerminalLine, counting, duration, number, screen, silent
from budwood.training import length


class Trained:
    """A trainer of 100 steps."""

    total_steps = 100


class Deciding(Trained):
    unit = "decisions"

    def env_steps(self) -> int:
        return 0


class Single(Trained):
    unit = "environment steps"

    def env_steps(self) -> None:
        return None


@pytest.mark.parametrize(
    ("trainer", "budget", "expected"),
    [
        (Trained(), None, 100),
        (Trained(), 40, 40),
        (Single(), 40, 40),
        (Single(), 400, 100),
        (Deciding(), 40, 100),  # 40 environment steps may be 5 decisions or 20
    ],
)
def test_progress_is_shown_by_a_budget_only_where_a_step_is_an_environment_step(
    trainer: Any, budget: int | None, expected: int
) -> None:
    assert length(trainer, budget) == expected


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    return Terminal()


def plain(text: str) -> str:
    """Without the codes that move the cursor and colour."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_pace_is_measured_over_a_sliding_window() -> None:
    clock = Clock()
    pace = Pace(window=10.0, clock=clock)
    pace.add(0)
    assert pace.rate is None
    assert pace.left(100) is None
    for second in range(1, 21):
        clock.now = 100.0 + second
        pace.add(second * 10 if second <= 5 else 50 + (second - 5) * 100)
    assert pace.rate == pytest.approx(100.0)
    assert pace.left(2550) == pytest.approx(10.0)
    assert pace.left(0) == 0.0


def test_a_resumed_run_is_not_credited_with_earlier_steps() -> None:
    clock, stream = Clock(), io.StringIO()
    lines = PlainLines(stream, clock=clock)
    lines.start(2_000_000, already=1_000_000)
    clock.now += 10
    lines.update(1_000_500, {})
    assert stream.getvalue() == "1,000,500/2,000,000 steps (50 %)  50 steps/s  5:33:10 left\n"


def test_plain_lines_come_now_and_then() -> None:
    clock, stream = Clock(), io.StringIO()
    lines = PlainLines(stream, every=5.0, clock=clock)
    lines.start(1000)
    metrics = {"rollout/ep_rew_mean": -123.456, "train/loss": 0.03125, "other": 1.0}
    for second in range(1, 13):
        clock.now += 1
        lines.phase("evaluating" if second == 10 else "")
        lines.update(second * 10, metrics)
    lines.message("a sentence")
    lines.stop("the end")
    assert stream.getvalue().splitlines() == [
        "50/1,000 steps (5 %)  return -123.5  loss 0.0312  10 steps/s  1:35 left",
        "90/1,000 steps (9 %)  return -123.5  loss 0.0312  10 steps/s  1:35 left  evaluating",
        "a sentence",
        "the end",
    ]


def test_a_terminal_has_one_line_that_is_redrawn(terminal: Terminal) -> None:
    clock = Clock()
    line = TerminalLine(terminal, clock=clock)
    line.start(1000)
    metrics = {"eval/return_mean": 1.0}
    for second in range(1, 4):
        clock.now += 1
        line.update(second * 100, metrics)
    drawn = terminal.tell()
    line.update(301, metrics)
    assert terminal.tell() == drawn, "faster than ten times a second nothing is drawn"
    line.phase("evaluating")
    line.message("a sentence")
    metrics["eval/return_mean"] = 2.0
    line.stop()
    text = plain(terminal.getvalue())
    for part in ("100/1,000", "evaluated 1", "100 steps/s", "7.0 s left", "evaluating", "a sentence\n"):
        assert part in text
    last = text.rstrip().splitlines()[-1]
    assert "301/1,000" in last
    assert "evaluated 2" in last
    assert "evaluating" not in last


def test_markup_in_a_message_is_text(terminal: Terminal) -> None:
    line = TerminalLine(terminal)
    line.start(1)
    line.message("x[0] [bold]stays[/bold]")
    line.stop("and [red]this")
    assert "x[0] [bold]stays[/bold]" in plain(terminal.getvalue())
    assert "and [red]this" in plain(terminal.getvalue())


def test_the_screen_fits_the_stream(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(screen(terminal), TerminalLine)
    assert isinstance(screen(io.StringIO()), PlainLines)
    quiet: Any = silent()
    assert type(quiet) is Progress
    quiet.start(1)
    quiet.update(1, {})
    quiet.phase("x")
    quiet.message("x")
    quiet.stop("x")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.03125, "0.0312"),
        (3.14159, "3.14"),
        (-123.456, "-123.5"),
        (1234.5, "1,234"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (125, "2:05"),
        (3723, "1:02:03"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("error", [BrokenPipeError, RuntimeError("reentrant call"), ValueError("closed file")])
def test_a_reader_that_goes_away_ends_no_run(
    error: Exception, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RuntimeError: what Python raises when a signal's handler prints in the middle of a print."""

    def gone(*_: Any, **__: Any) -> None:
        raise error

    lines = (PlainLines(io.StringIO(), every=0), TerminalLine(terminal, every=0))
    monkeypatch.setattr("builtins.print", gone)
    monkeypatch.setattr("rich.console.Console.print", gone)
    monkeypatch.setattr("rich.live.Live.update", gone)
    for line in lines:
        line.start(100)
        line.update(50, {})
        line.phase("evaluating")
        line.message("hello")
        line.stop("done")


def ended(*dones: bool) -> StepBatch:
    batch = StepBatch()
    batch.dones = np.array(dones)
    return batch


def test_a_long_evaluation_is_seen_to_move_without_a_terminal() -> None:
    clock, stream = Clock(), io.StringIO()
    lines = PlainLines(stream, every=5.0, clock=clock)
    lines.phase("evaluating")
    observer = counting(lines)
    assert observer is not None
    for second in range(1, 12):
        clock.now += 1
        observer(ended(second % 2 == 0, second == 3))
    lines.stop()
    assert stream.getvalue().splitlines() == ["evaluating, 3 episodes so far", "evaluating, 6 episodes so far"]


def test_an_evaluation_alone_has_a_line_on_a_terminal_that_goes_again(terminal: Terminal) -> None:
    clock = Clock()
    line = TerminalLine(terminal, clock=clock)
    line.phase("evaluating")
    observer = counting(line)
    assert observer is not None
    clock.now += 1
    observer(ended(True, True))
    text = plain(terminal.getvalue())
    assert "2 episodes so far" in text
    assert "0/0" not in text
    line.stop()
    assert "\x1b[2K" in terminal.getvalue().split("2 episodes so far")[-1], "erased"


def test_nothing_is_counted_where_nobody_looks() -> None:
    assert counting(silent()) is None


def test_a_run_that_starts_in_a_phase_has_one_line(terminal: Terminal) -> None:
    before = sys.stdout
    line = TerminalLine(terminal)
    line.phase("evaluating")
    line.start(100)
    line.stop()
    assert sys.stdout is before
