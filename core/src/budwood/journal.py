"""A run's journal: one JSON object a line in ``events.jsonl``, only ever appended to.

It is what a run remembers, whether or not anybody tracks it: the report, ``budwood runs`` and the tracking process all
read it. Going back to a checkpoint is an event too (``rewind``), so the file never changes under a reader. The writer
holds a lock on the file while it lives; a torn last line, left by a kill, is no event.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from budwood.api.errors import BudwoodError, CheckpointError, DiskFullError
from budwood.folder import inside
from budwood.redact import scrubbed

FILE = "events.jsonl"
FLUSH_SECONDS = 2.0
LOCK_SECONDS = 1.0
"""A reader that asks whether the writer lives holds the lock for microseconds; a second writer holds it for longer."""

RunStatus = Literal["running", "finished", "failed", "interrupted"]
Point = tuple[str, int, str]
"""(metric, step, repr of the value): what makes two metric points the same, NaN included."""


@dataclass(frozen=True)
class Event:
    """``t`` unix milliseconds; ``kind`` run, metrics, tags, artifact, status or rewind; ``step`` for metrics only."""

    t: int
    kind: str
    data: Mapping[str, Any]
    step: int = 0

    def points(self) -> Iterator[Point]:
        return ((key, self.step, repr(value)) for key, value in self.data.items())


class Journal:
    """The writing end. ``resume_at`` takes the journal back to its first N events, N as a checkpoint recorded it.

    Events wait in memory until :meth:`flush`, or until two seconds have passed; :meth:`sync` also reaches the disk.
    """

    def __init__(self, folder: Path, resume_at: int | None = None) -> None:
        self.folder = folder
        self._path = folder / FILE
        self._waiting: list[str] = []
        self._flushed = time.monotonic()
        new = os.O_CREAT | os.O_EXCL if resume_at is None else 0
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | new, 0o644)
        except FileExistsError:
            raise BudwoodError(
                "the folder already holds a run", where=str(folder), do="Resume it or use another folder"
            ) from None
        except FileNotFoundError:
            raise CheckpointError("there is no journal here", where=str(self._path), do="Start a new run") from None
        try:
            self._lock()
            self.count = 0 if resume_at is None else self._rewind(resume_at)
        except BaseException:
            os.close(self._fd)
            raise

    def run(self, data: Mapping[str, Any]) -> None:
        """What the run is: written when it starts and each time it resumes. See :func:`budwood.tracking.start`."""
        self._append("run", data)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._append("metrics", {key: float(value) for key, value in values.items()}, step)

    def tags(self, tags: Mapping[str, str]) -> None:
        self._append("tags", tags)

    def artifact(self, path: Path, into: str = "") -> None:
        """A file or folder of the run that tracking keeps, under ``into`` among its artifacts."""
        kept = inside(self.folder, path).relative_to(self.folder.resolve())
        self._append("artifact", {"path": kept.as_posix(), "into": into})

    def status(self, status: RunStatus) -> None:
        self._append("status", {"status": status})
        self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        if not self._waiting:
            return
        data = "".join(self._waiting).encode()
        start, written = os.fstat(self._fd).st_size, 0
        try:
            while written < len(data):
                written += os.write(self._fd, memoryview(data)[written:])
        except OSError as error:
            whole = data.rfind(b"\n", 0, written) + 1
            os.ftruncate(self._fd, start + whole)
            self._waiting = [data[whole:].decode()]
            raise _unwritten(error, self._path) from error
        self._waiting = []

    def sync(self) -> None:
        """Flush and wait for the disk: what a checkpoint counts on must be there before it."""
        self.flush()
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _unwritten(error, self._path) from error

    def close(self) -> None:
        """Flush and let go of the lock. Closing twice is allowed."""
        if self._fd < 0:
            return
        try:
            self.sync()
        finally:
            os.close(self._fd)
            self._fd = -1

    def _append(self, kind: str, data: Mapping[str, Any], step: int | None = None) -> None:
        line: dict[str, Any] = {"t": time.time_ns() // 1_000_000, "kind": kind}
        if step is not None:
            line["step"] = step
        line["data"] = data if kind == "metrics" else scrubbed(data)
        self._waiting.append(json.dumps(line, separators=(",", ":")) + "\n")
        self.count += 1
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def _lock(self) -> None:
        give_up = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise BudwoodError(
                        "another process is training this run", where=str(self.folder), do="Wait for it or stop it"
                    ) from None
                time.sleep(0.05)
            else:
                return

    def _rewind(self, to: int) -> int:
        end = count = 0
        for end, event in scan(self._path):  # noqa: B007  (the last offset is where a torn line starts)
            count = event.data["to"] if event.kind == "rewind" else count + 1
        if to > count:
            raise CheckpointError(
                f"the checkpoint was written after {to} events and the journal holds {count}",
                where=str(self._path),
                do="Resume from an earlier checkpoint",
            )
        os.ftruncate(self._fd, end)
        if to < count:
            self.count = to
            self._append("rewind", {"to": to})
            self.flush()
        return to


def scan(path: Path, start: int = 0) -> Iterator[tuple[int, Event]]:
    """(end offset, event) of every whole line from byte ``start`` on, rewinds included, as the file stands now."""
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            try:
                fields = json.loads(line)
                event = Event(fields["t"], fields["kind"], dict(fields["data"]), fields.get("step", 0))
                _check(event)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise BudwoodError(
                    f"the line that ends at byte {start} is damaged", where=str(path), do="Restore the file"
                ) from error
            yield start, event


def _check(event: Event) -> None:
    """:raises KeyError, TypeError: it is not one that a :class:`Journal` writes."""
    numbers = [event.t, event.step, *([event.data["to"]] if event.kind == "rewind" else [])]
    if event.kind == "metrics":
        numbers += event.data.values()
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise TypeError("a number is none")
    if event.kind == "run" and not isinstance(event.data.get("uri"), (str, type(None))):
        raise TypeError("an address is none")


def read(folder: Path) -> list[Event]:
    """What happened in the run, in order; what a resume took back is not among it."""
    events: list[Event] = []
    for _, event in scan(folder / FILE):
        if event.kind == "rewind":
            del events[event.data["to"] :]
        else:
            events.append(event)
    return events


def taken_back(path: Path, end: int) -> set[Point]:
    """The metric points that resumes took back, up to byte ``end``: a tracker that sent them need not send them again."""
    points: set[Point] = set()
    events: list[Event] = []
    for offset, event in scan(path):
        if offset > end:
            break
        if event.kind == "rewind":
            for dropped in events[event.data["to"] :]:
                if dropped.kind == "metrics":
                    points.update(dropped.points())
            del events[event.data["to"] :]
        else:
            events.append(event)
    return points


def history(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """metric -> (steps, values), a :data:`budwood.api.History`."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for event in read(folder):
        if event.kind == "metrics":
            for key, value in event.data.items():
                steps, values = series.setdefault(key, ([], []))
                steps.append(event.step)
                values.append(value)
    return series


def is_written(folder: Path) -> bool:
    """Whether a living process holds the journal open for writing: the run is being trained right now."""
    with (folder / FILE).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _unwritten(error: OSError, path: Path) -> BudwoodError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError("no space left for the journal", where=str(path), do="Free some space and resume the run")
    return BudwoodError(
        f"the journal cannot be written: {error.strerror}", where=str(path), do="Check the disk, then resume the run"
    )
