"""A simulation in a process of its own, driven over a pipe.

Isaac Lab allows one simulation a process, seeds the generators of the whole process, and Isaac Sim ends its process when it
closes; a run needs a second simulation to evaluate on, generators of its own, and a report at the end. What crosses the
pipe are arrays, which Stable-Baselines3 wants anyway. The simulator has no standard input, so a question that it asks
there, such as for its licence, is never answered for the user; what it prints goes to a file, kept if it fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budwood.api import Array, BudwoodError, ContributionError

if TYPE_CHECKING:
    from budwood_isaac.simulation import Facts, Step

Make = Callable[[], Any]
Launch = Callable[[Callable[[Make], None]], None]
"""Starts a runtime and, inside it, calls what it is given with a maker of the environment; picklable by reference."""

WORKER = "from budwood_isaac.process import work; import sys; work(int(sys.argv[1]))"
CLOSING_SECONDS = 60.0


class Remote:
    """A :class:`~budwood_isaac.simulation.Backend` in another process; ``output`` is the file it prints to."""

    def __init__(self, launch: Launch) -> None:
        descriptor, name = tempfile.mkstemp(prefix="budwood-isaac-", suffix=".log")
        self.output, self._closed = Path(name), False
        self._pipe, theirs = Pipe()
        with theirs, open(descriptor, "wb") as printed:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", WORKER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the run, which then stops at its next boundary
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        self.facts: Facts = self._ask(launch)

    def reset(self, seed: int | None) -> Any:
        return self._ask(("reset", seed))

    def step(self, actions: Array) -> Step:
        step: Step = self._ask(("step", actions))
        return step

    def close(self) -> None:
        if not self._closed:
            self._end()
            self.output.unlink(missing_ok=True)  # temporary files have other cleaners too

    def _end(self) -> None:
        self._closed = True
        self._pipe.close()  # the other side reads the end of its orders
        try:
            self._process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, order: Any) -> Any:
        try:
            self._pipe.send(order)
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._end()
            what = f"the simulation's process ended by itself with status {self._process.returncode}"
            raise self._error(what) from error
        if isinstance(answer, Failure):
            self._end()
            raise answer.error or self._error(f"the simulation failed: {answer.what}")
        return answer

    def _error(self, what: str) -> BudwoodError:
        printed = self.output.read_text(errors="replace") if self.output.exists() else ""
        if "EULA" in printed:
            do = (
                f"Isaac Sim asks whether you accept its licence (EULA), which only you can answer: {self.output} has what it "
                "asks and how to accept"
            )
        else:
            do = f"What it printed is in {self.output}"
        return ContributionError(what, where="env", do=do)


class Failure:
    """An error on its way through the pipe: one of ours field by field, anybody else's as text."""

    def __init__(self, error: BaseException) -> None:
        self.what = f"{type(error).__name__}: {error}"
        self._ours = (type(error), error.what, error.where, error.do) if isinstance(error, BudwoodError) else None

    @property
    def error(self) -> BudwoodError | None:
        if self._ours is None:
            return None
        kind, what, where, do = self._ours
        return kind(what, where=where, do=do)


class _ToldError(Exception):
    """On the way out of the runtime, after the other side has been told."""


def work(descriptor: int) -> None:
    """The other process, from its first order, which is what to launch, to the end of the pipe."""
    with Connection(descriptor) as pipe:
        launch: Launch = pipe.recv()
        try:
            launch(lambda make: serve(pipe, make))
        except _ToldError:
            raise
        except BaseException as error:
            pipe.send(Failure(error))
            raise


def serve(pipe: Connection, make: Make) -> None:
    """Answer orders until there are no more; an error is told at once, since leaving a runtime may end the process."""
    try:
        env = make()
        from budwood_isaac.simulation import Simulation

        simulation = Simulation(env)
        pipe.send(simulation.facts)
        while (order := _next(pipe)) is not None:
            name, argument = order
            pipe.send(simulation.reset(argument) if name == "reset" else simulation.step(argument))
        simulation.close()
    except BaseException as error:
        pipe.send(Failure(error))
        raise _ToldError from error


def _next(pipe: Connection) -> tuple[str, Any] | None:
    try:
        order: tuple[str, Any] = pipe.recv()
    except EOFError:
        return None
    return order
