"""``budwood launch``: several processes on this machine that begin together, end together, and leave nobody behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

from budwood import machine
from budwood.folder import going_on
from budwood.processes import LOST, environment

TERMINATE_SECONDS, KILL_SECONDS = 8.0, 16.0
"""After the first failure: until the others are asked to end, and until they are made to."""
SHOWN_BYTES = 20_000
INTERRUPTED = 130
SPOKEN = range(1, LOST)
"""Exit codes that a command of budwood ends with, having said why."""


@dataclass(frozen=True)
class Ended:
    """``code`` for the shell, ``said`` about a failure, and the JSON line of process 0 if it was asked for one."""

    code: int
    said: str
    answer: Any = None


def launch(words: Sequence[str], count: int, deadline: float | None = None) -> Ended:
    """Run ``budwood WORDS`` in ``count`` processes. Process 0 has this terminal; of the others only a failure is seen."""
    with tempfile.TemporaryDirectory(prefix="budwood-launch-") as folder:
        logs = [open(os.path.join(folder, str(rank)), "w+b") for rank in range(count)]  # noqa: SIM115 - closed below
        try:
            children = _start(words, count, deadline, logs)
            with _forwarding(children):
                first = _attend(children)
            said, code = _verdict(first, [child.returncode for child in children], logs)
            return Ended(code, said, _last_line(logs[0]) if "--json" in words else None)
        finally:
            for log in logs:
                log.close()


def _start(
    words: Sequence[str], count: int, deadline: float | None, logs: Sequence[IO[bytes]]
) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = {"OMP_NUM_THREADS": str(max(1, machine.cores() // count))}
    children = []
    for rank in range(count):
        quiet = rank > 0
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", "budwood", *words],
                stdin=subprocess.DEVNULL if quiet else None,
                stdout=logs[rank] if quiet or "--json" in words else None,
                stderr=logs[rank] if quiet else None,
                env={**threads, **os.environ, **environment(rank, count, port, deadline)},
                process_group=0,  # Ctrl-C reaches the launcher, which hands it on once
            )
        )
    return children


@contextmanager
def _forwarding(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to every process; if the launcher itself fails, all of them end."""

    def forward(number: int, _frame: Any) -> None:
        for child in children:
            with suppress(ProcessLookupError):
                child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()


def _attend(children: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Until all have ended: the rank of the one that failed first, and neither because of another nor by our hand."""
    culprit, since, terminated, over = None, None, False, False
    while not over:
        time.sleep(0.05)
        codes = [child.poll() for child in children]
        over = None not in codes
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0, INTERRUPTED)]
        if culprit is None and not terminated:
            culprit = next((rank for rank in failed if codes[rank] != LOST), None)
        if since is None and (failed or codes[0] is not None):
            since = time.monotonic()
        waited = 0.0 if since is None else time.monotonic() - since
        for child, code in zip(children, codes, strict=True):
            if code is None and waited > KILL_SECONDS:
                child.kill()
            elif code is None and waited > TERMINATE_SECONDS and not terminated:
                child.terminate()
        terminated = terminated or waited > TERMINATE_SECONDS
    return culprit


def _verdict(first: int | None, codes: Sequence[int], logs: Sequence[IO[bytes]]) -> tuple[str, int]:
    """What is to be said, and the exit code. Process 0 has spoken for itself, but for what it left to another to say."""
    count = len(codes)
    if first is None:
        if all(code in (0, INTERRUPTED) for code in codes):
            return "", max(codes)
        said = (_tail(log) for log, code in zip(logs[1:], codes[1:], strict=True) if code not in (0, INTERRUPTED))
        code = LOST if LOST in codes else max(map(_for_shell, codes))
        return next(filter(None, said), f"{_ends(codes)}. Continue with: {going_on(count=count)}"), code
    code, who = codes[first], f"process {first} of {count}"
    if code < 0:
        return f"{who} {_end(code)} first. Continue with: {going_on(count=count)}", _for_shell(code)
    if code in SPOKEN and codes[0] == code:  # what all found out together, process 0 has said
        return "", code
    if first == 0:
        return f"{who} failed first; {_ends(codes)}", code
    said_there = _tail(logs[first])
    return f"{who} failed first, with exit code {code}" + (
        f":\n{said_there}" if said_there else f", and said nothing; {_ends(codes)}"
    ), code


def _ends(codes: Sequence[int]) -> str:
    return ", ".join(f"process {rank} {_end(code)}" for rank, code in enumerate(codes))


def _end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    named = -code in signal.Signals  # of the real-time signals only the first and the last are
    return f"was killed by {signal.Signals(-code).name if named else f'signal {-code}'}"


def _for_shell(code: int) -> int:
    """As shells give it: 128 and the signal's number for a process that was killed by one."""
    return 128 - code if code < 0 else code


def _tail(log: IO[bytes]) -> str:
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - SHOWN_BYTES))
    return log.read().decode(errors="replace").strip()


def _last_line(log: IO[bytes]) -> Any:
    lines = _tail(log).splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
