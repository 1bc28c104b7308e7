"""Two processes as one run, and what happens to one of them: killed, or stuck for ever.

``budwood launch`` starts programs; here it forks, so that imports are paid once and a fault can be armed in one of them. That
it starts programs is in ``tests/test_processes.py``.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from strikes import Counts, Draw, Fault, Strike, at_call, places

from budwood import launching, sink
from budwood.cli import main as command
from budwood.folder import RunFolder

DEADLINE = 60.0
"""Seconds that one process waits for another where one of them hangs; a busy machine takes some to do anything at all."""
Around = Callable[[], AbstractContextManager[None]]
"""What is armed before a run, and looked at after it, in the process that trains."""


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


class Forked:
    """As much of ``subprocess.Popen`` as budwood uses, of ``python -m budwood...``, in a fork of this process."""

    around: Around

    def __init__(
        self,
        words: Sequence[str],
        *,
        stdin: Any,
        stdout: IO[bytes] | None,
        stderr: IO[bytes] | None,
        env: dict[str, str],
        process_group: int | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                if start_new_session:
                    os.setsid()
                elif process_group is not None:
                    os.setpgid(0, process_group)
                os.environ.clear()
                os.environ.update(env)
                for descriptor, file in ((1, stdout), (2, stderr)):
                    if file is not None:
                        os.dup2(file.fileno(), descriptor)
                sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
                code = self.main(list(words[words.index("-m") + 1 :]))
            except BaseException:  # noqa: BLE001  as the interpreter does
                traceback.print_exc()
            finally:
                os._exit(code)

    def main(self, words: list[str]) -> int:
        with type(self).around():
            return command(words[1:])

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 600.0) -> int:
        give_up = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > give_up:
                raise subprocess.TimeoutExpired("budwood", timeout)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkedSink(Forked):
    """The tracking process, which a person's run starts as a program."""

    def main(self, words: list[str]) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.closerange(3, 1024)  # the lock of the journal that is being written, above all
        sink.main(words[1:])
        return 0


def fork_instead(module: Any, forked: type[Forked]) -> None:
    """What ``module`` would start as a program from now on."""
    names = {"DEVNULL": subprocess.DEVNULL, "TimeoutExpired": subprocess.TimeoutExpired}
    module.subprocess = SimpleNamespace(Popen=forked, **names)


def launch(words: Sequence[str], around: Around) -> int:
    """``budwood launch``, whose processes are forks, with ``around`` in each."""
    Forked.around = staticmethod(around)
    fork_instead(launching, Forked)
    return command(list(words))


def _place(draw: random.Random, counts: Counts) -> tuple[str, int, bool]:
    name = draw.choice([name for name in places() if counts[name]])
    return name, draw.randint(1, counts[name]), draw.random() < 0.5


def kill_rank(draw: random.Random, *counts: Counts) -> Fault:
    """SIGKILL of one process before or after any call of any place of its own."""
    victim = draw.randrange(len(counts))
    place, call, after = _place(draw, counts[victim])

    def arm(strike: Strike, _output: Path) -> None:
        def die() -> None:
            strike.now()
            os.kill(os.getpid(), signal.SIGKILL)

        if rank() == victim:
            at_call(*places()[place], call, die, after=after)

    says = rf"(?s).*process {victim} of {len(counts)} was killed by SIGKILL.*"
    about = f"process {victim} {'after' if after else 'before'} call {call} at {place}"
    return Fault("one of two processes killed", about, arm, says=says)


def hang_rank(draw: random.Random, *counts: Counts) -> Fault:
    """One process stops answering, in the midst of any call; what it was doing lies in the run's folder."""
    victim = draw.randrange(len(counts))
    place = draw.choice([name for name in ("exchange", "update", "checkpoint") if counts[victim][name]])
    call = draw.randint(1, counts[victim][place])

    def arm(strike: Strike, _output: Path) -> None:
        if rank() == victim:
            at_call(*places()[place], call, lambda: lost_in_thought(strike))

    def stacks(run: RunFolder) -> str:
        file = run.folder / f"stacks-{victim}.txt"
        return "" if file.exists() and "lost_in_thought" in file.read_text() else f"no stack of process {victim}"

    return Fault(
        "one of two processes hangs",
        f"process {victim} at call {call} at {place}",
        arm,
        says=rf"(?s).*waited {DEADLINE:g} s for another one.*",
        left=stacks,
        deadline=DEADLINE,
    )


def lost_in_thought(strike: Strike) -> None:
    strike.now()
    while True:
        time.sleep(600)


RANKS: tuple[Draw, ...] = (kill_rank, kill_rank, kill_rank, hang_rank)
