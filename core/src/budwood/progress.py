"""What a person sees while a run trains: one line that changes on a terminal, a plain line now and then elsewhere.

Everything is drawn from the thread that trains and at most a few times a second: no thread of its own competes with it.
A reader that went away, as with ``budwood run ... 2>&1 | head``, ends the reading and not the run.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, TextIO

from budwood.redact import without_secrets

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from budwood.api import StepBatch
    from budwood.outlets import Screen

TRAINING_RETURN = ("rollout/return_mean", "rollout/ep_rew_mean")
EVALUATED_RETURN = "eval/return_mean"

SHOWN = (
    ("return", TRAINING_RETURN),
    ("reward", ("train/reward",)),
    ("evaluated", (EVALUATED_RETURN,)),
    ("loss", ("train/loss", "loss")),
)
"""Label -> the metrics it may come from, the first one present."""


class Progress:
    """The silent one, for Python callers; screens override it.

    ``start`` once with the steps to reach and those already done, ``update`` as often as one likes (the mapping is read
    whenever the line is drawn), ``phase`` for what is going on between updates ('' when it is over), ``message`` for a
    sentence that stays, ``stop`` at the end.
    """

    shown = False
    """Whether somebody sees phases, so that it is worth counting what a phase has done."""

    def start(self, total: int, already: int = 0) -> None: ...

    def update(self, steps: int, metrics: Mapping[str, float]) -> None: ...

    def phase(self, text: str) -> None: ...

    def message(self, text: str) -> None: ...

    def stop(self, text: str = "") -> None: ...


def silent() -> Progress:
    return Progress()


def counting(progress: Screen) -> Callable[[StepBatch], None] | None:
    """An observer of an evaluation that shows how many episodes are over; None where nobody looks."""
    if not progress.shown:
        return None
    over = 0

    def observer(batch: StepBatch) -> None:
        nonlocal over
        over += int(batch.dones.sum())
        progress.phase(f"evaluating, {over} episode{'s' * (over != 1)} so far")

    return observer


def screen(stream: TextIO | None = None) -> Progress:
    """The line that suits ``stream`` (default: standard error)."""
    stream = sys.stderr if stream is None else stream
    return TerminalLine(stream) if stream.isatty() else PlainLines(stream)


class Pace:
    """Steps a second over the last ``window`` seconds, and from it the time that is left."""

    def __init__(self, window: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._window, self._clock = window, clock
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, steps: int) -> None:
        now = self._clock()
        self._samples.append((now, steps))
        while len(self._samples) > 2 and now - self._samples[1][0] > self._window:
            self._samples.popleft()

    @property
    def rate(self) -> float | None:
        """Steps a second; None until two moments are known."""
        if len(self._samples) < 2:
            return None
        (then, before), (now, steps) = self._samples[0], self._samples[-1]
        return (steps - before) / (now - then) if now > then and steps > before else None

    def left(self, total: int) -> float | None:
        rate = self.rate
        return None if rate is None else max(0, total - self._samples[-1][1]) / rate


class _Line(Progress):
    """What both screens know: where the run stands, and how that reads."""

    shown = True

    def __init__(self, stream: TextIO, every: float, clock: Callable[[], float]) -> None:
        self._stream, self._every, self._clock = stream, every, clock
        self._pace = Pace(clock=clock)
        self._drawn = clock()
        self._total = self._steps = 0
        self._metrics: Mapping[str, float] = {}
        self._phase = ""

    def start(self, total: int, already: int = 0) -> None:
        self._total, self._steps = total, already
        self._pace.add(already)

    def update(self, steps: int, metrics: Mapping[str, float]) -> None:
        self._steps, self._metrics = steps, metrics
        if self._due():
            self._pace.add(steps)
            self._draw()

    def phase(self, text: str) -> None:
        self._phase = text
        if text and self._due():
            self._draw()

    def _due(self) -> bool:
        now = self._clock()
        if now - self._drawn < self._every:
            return False
        self._drawn = now
        return True

    def _draw(self) -> None:
        raise NotImplementedError

    def _words(self) -> list[str]:
        """The parts of the line after the step count."""
        words = []
        for label, keys in SHOWN:
            value = next((self._metrics[key] for key in keys if key in self._metrics), None)
            if value is not None:
                words.append(f"{label} {number(value)}")
        if (rate := self._pace.rate) is not None:
            words.append(f"{number(rate)} steps/s")
        if (left := self._pace.left(self._total)) is not None:
            words.append(f"{duration(left)} left")
        if self._phase:
            words.append(self._phase)
        return words


def _if_read() -> AbstractContextManager[None]:
    """OSError, ValueError: nobody reads any more. RuntimeError: a signal's message in the middle of another one."""
    return suppress(OSError, ValueError, RuntimeError)


class PlainLines(_Line):
    """One line at most every ``every`` seconds, for logs and pipes."""

    def __init__(self, stream: TextIO, every: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, every, clock)

    def _draw(self) -> None:
        reached = (
            [f"{self._steps:,}/{self._total:,} steps ({100 * self._steps // self._total} %)"] if self._total else []
        )
        self.message("  ".join([*reached, *self._words()]))

    def message(self, text: str) -> None:
        with _if_read():
            print(without_secrets(text), file=self._stream, flush=True)

    def stop(self, text: str = "") -> None:
        if text:
            self.message(text)


class TerminalLine(_Line):
    """One line, redrawn in place; messages scroll above it."""

    def __init__(self, stream: TextIO, every: float = 0.1, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console

        super().__init__(stream, every, clock)
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None

    def start(self, total: int, already: int = 0) -> None:
        if self._live is not None:
            self.stop()
        super().start(total, already)
        self._open()

    def _open(self) -> None:
        from rich.live import Live

        self._live = Live(self._table(), console=self._console, auto_refresh=False, transient=not self._total)
        with _if_read():
            self._live.start(refresh=True)

    def _draw(self) -> None:
        if self._live is not None:
            with _if_read():
                self._live.update(self._table(), refresh=True)

    def phase(self, text: str) -> None:
        begins_or_ends = not (self._phase and text)
        super().phase(text)
        if text and self._live is None:
            self._open()
        elif begins_or_ends:
            self._draw()

    def message(self, text: str) -> None:
        with _if_read():
            self._console.print(without_secrets(text))

    def stop(self, text: str = "") -> None:
        if self._live is not None:
            self._phase = ""
            self._draw()
            with _if_read():
                self._live.stop()
            self._live = None
        if text:
            self.message(text)

    def _table(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 2), expand=True)
        line.add_column(ratio=1, min_width=8, no_wrap=True)
        line.add_column(no_wrap=True, overflow="ellipsis")
        words = "  ".join([*([f"{self._steps:,}/{self._total:,}"] if self._total else []), *self._words()])
        line.add_row(ProgressBar(total=max(1, self._total), completed=self._steps), Text(words))
        return line


def number(value: float) -> str:
    """As short as it stays useful: ``0.0312``, ``3.14``, ``123.5``, ``1,234``."""
    size = abs(value)
    if size >= 1000 and size != float("inf"):
        return f"{value:,.0f}"
    return f"{value:.4g}" if size >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """``0.4 s``, ``17 s``, ``2:05``, ``1:02:03``, ``3 d 4 h``."""
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
