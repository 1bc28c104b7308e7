"""Runs cells side by side, each in a process of its own with one thread, and listens to what they say.

A process that dies, for whatever reason, ends its own cell and no other. When this process dies the cells notice that
their input closes: they checkpoint and stop, and the next start takes them up again.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budwood.grid import Cell
from budwood.overrides import Loaded

LOG = "log.txt"
LOOK_SECONDS = 1.0
"""How often to look at a cell that a process from before still trains."""
PATIENCE_SECONDS = 60.0
"""How long cells may take to checkpoint and stop when this process cannot go on."""
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")


@dataclass
class Working:
    """A cell and its process. ``steps`` are training steps; ``trained`` once only the tracker is waited for."""

    cell: Cell
    process: subprocess.Popen[bytes]
    steps: int = 0
    trained: bool = False
    error: str = ""
    _heard: bytes = field(default=b"", repr=False)

    def hear(self) -> bool:
        """Take in what it said; False when it will say no more."""
        assert self.process.stdout is not None
        said = os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self._heard = (self._heard + said).split(b"\n")
        for line in lines:
            facts = json.loads(line)
            self.steps = facts.get("steps", self.steps)
            self.trained = facts.get("trained", self.trained)
            self.error = facts.get("error", self.error)
        return bool(said)

    def end(self) -> None:
        """Wait for the process, and find out what went wrong if something did."""
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        if code and not self.error:
            self.error = self.cell.run.status.get("error") or _last_words(self.cell, code)


class Pool:
    """``orders``: variant -> configuration, seed left open. ``environment`` is added to that of the processes.

    ``ended`` is told of every cell whose process is gone, ``moved`` whenever a cell may have moved on.
    """

    def __init__(
        self,
        orders: Callable[[Cell], Loaded],
        processes: int,
        environment: Mapping[str, str],
        ended: Callable[[Cell, str], None],
        moved: Callable[[Pool], None],
    ) -> None:
        self.working: list[Working] = []
        self.stopping = 0
        self._orders, self._processes, self._environment = orders, processes, environment
        self._ended, self._moved = ended, moved

    def run(self, cells: Sequence[Cell]) -> None:
        """Every cell to its end, or, after :meth:`stop`, to its next checkpoint."""
        waiting = deque(cells)
        elsewhere: list[Cell] = []
        with selectors.DefaultSelector() as selector:
            try:
                while self.working or (not self.stopping and (waiting or elsewhere)):
                    elsewhere = self._look(elsewhere, waiting)
                    while waiting and not self.stopping and self._free(elsewhere):
                        cell = waiting.popleft()
                        if cell.status == "running":
                            elsewhere.append(cell)
                        else:
                            self._start(cell, selector)
                    self._moved(self)
                    self._listen(selector)
                self._moved(self)
            finally:
                self._dismiss()

    def stop(self) -> None:
        """First: checkpoint and stop. Second: stop at once. Third: die. Safe to call from a signal handler."""
        self.stopping += 1
        for work in self.working:
            if self.stopping == 1:
                _let_go(work)
            else:
                work.process.send_signal(signal.SIGTERM if self.stopping == 2 else signal.SIGKILL)

    def _dismiss(self) -> None:
        """What still works after an error of our own checkpoints and stops; what has not done so in time is killed."""
        for work in self.working:
            _let_go(work)
        give_up = time.monotonic() + PATIENCE_SECONDS
        for work in self.working:
            try:
                work.process.wait(max(0.0, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                work.process.kill()
            work.end()

    def _free(self, elsewhere: Sequence[Cell]) -> bool:
        return sum(not work.trained for work in self.working) + len(elsewhere) < self._processes

    def _look(self, elsewhere: Sequence[Cell], waiting: deque[Cell]) -> list[Cell]:
        """Cells that are still being trained by a process from before; those that no longer are end or wait again."""
        still = []
        for cell in elsewhere:
            if cell.status == "running":
                still.append(cell)
            elif cell.done:
                self._ended(cell, "")
            else:
                waiting.appendleft(cell)
        return still

    def _start(self, cell: Cell, selector: selectors.BaseSelector) -> None:
        order = self._orders(cell)
        cell.run.create(again=True)
        with (cell.run.folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "budwood.cell", str(cell.run.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **THREADS, "PYTHONPATH": _import_path(), **self._environment},
                start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
            )
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(f"{json.dumps({'config': order.data, 'origin': order.origin})}\n".encode())
            process.stdin.flush()
        work = Working(cell, process)
        self.working.append(work)
        if self.stopping:  # a signal came while it was being started
            process.stdin.close()
        selector.register(process.stdout, selectors.EVENT_READ, work)

    def _listen(self, selector: selectors.BaseSelector) -> None:
        for key, _ in selector.select(LOOK_SECONDS):
            work: Working = key.data
            if not work.hear():
                selector.unregister(key.fileobj)
                work.end()
                self.working.remove(work)
                self._ended(work.cell, "" if self.stopping else work.error)


@contextmanager
def stopping_on_signals(pool: Pool, say: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the pool instead of this process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_number: int, _frame: Any) -> None:
        pool.stop()
        say(
            "stopping: every run ends its update and writes a checkpoint; once more to stop at once"
            if pool.stopping == 1
            else "stopping at once"
        )

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _import_path() -> str:
    """Where this process finds its modules, so that a cell finds the same; Python drops what is named twice."""
    return os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)


def _let_go(work: Working) -> None:
    """Close its input: it checkpoints and stops."""
    assert work.process.stdin is not None
    with suppress(BrokenPipeError):
        work.process.stdin.close()


def _last_words(cell: Cell, code: int) -> str:
    if code < 0:
        return f"its process was killed by {signal.Signals(-code).name}"
    log: Path = cell.run.folder / LOG
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"its process ended with code {code}"
