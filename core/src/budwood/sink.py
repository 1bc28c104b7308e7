"""The tracking process: ``python -m budwood.sink FOLDER`` sends a run's journal to MLflow, and retries until it is there.

It reads the journal from where it stopped, so it may be killed at any moment and started again by anyone; there is at
most one a run. It stays while the journal is being written and leaves when everything is sent, or when the store has been
unreachable for a while after the run ended; then the rest stays pending (see :func:`budwood.tracking.replay`).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from budwood import journal
from budwood.api.errors import BudwoodError
from budwood.folder import inside
from budwood.journal import Event, Point
from budwood.redact import without_secrets
from budwood.tracking import LOCK, State, exclusive, full_address

if TYPE_CHECKING:
    from budwood.mlflow_store import Store

POLL_SECONDS = 1.0
RETRY_SECONDS = (0.5, 10.0)
"""The first wait after a failure and the longest; it doubles in between."""
POINTS_PER_GROUP = 1000


class NotYetError(Exception):
    """To be tried again later."""


class Sink:
    """Holds how far the run's journal is in MLflow. ``known`` is where the run was last described when we started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / journal.FILE
        self.store: Store | None = None
        self.state = State.load(folder)
        uri: str | None = None
        self.known = 0
        for offset, event in journal.scan(self.path):
            if event.kind == "run":
                uri, self.known = event.data.get("uri"), offset
        if uri is None:
            raise BudwoodError("the run is not tracked", where=str(folder))
        if uri != self.state.uri:
            self.state = State(uri=uri)
        self.uri: str = uri
        self.address = full_address(uri)
        self.sent_again = False
        self.sent_before = journal.taken_back(self.path, self.state.position)

    def run(self, deadline: float) -> None:
        """Send until done, at most ``deadline`` seconds after the journal was closed."""
        wait, ended = RETRY_SECONDS[0], float("inf")
        while True:
            written = journal.is_written(self.folder)  # asked before reading: nothing can follow what is then read
            if not written:
                ended = min(ended, time.monotonic())
            try:
                if not self.send():
                    return
                if not written:
                    self._believe()
            except BudwoodError:
                raise
            except Exception as error:  # noqa: BLE001  (whatever the store or its libraries raise is shown and retried)
                self._failed(error)
                if time.monotonic() - ended > deadline:
                    return
                time.sleep(wait)
                wait = min(2 * wait, RETRY_SECONDS[1])
            else:
                wait = RETRY_SECONDS[0]
                if not written:
                    self._keep(phase="done", error="")
                    return
                time.sleep(POLL_SECONDS)

    def send(self) -> bool:
        """Everything that is in the journal now. False: another sink has to go on, for the run moved to another store."""
        found = list(groups(journal.scan(self.path, self.state.position)))
        if found:
            self._to_disk()
        for end, events in found:
            first = events[0]
            if first.kind == "run" and end > self.known and first.data["uri"] != self.uri:
                return False
            if self.store is None:
                self.store = self._connect()
            self._deliver(self.store, events, end)
            self._keep(position=end, sent=self.state.sent + len(events), phase="sending", error="")
        return True

    def _believe(self) -> None:
        """Every number of the run is asked back, at its end, also by a sink that found nothing left to send; what a store said
        it took and did not keep is sent again once. One that loses it again is asked until the deadline, and sent nothing more
        before another sink asks, such as that of `budwood runs --sync`.

        :raises NotYetError: some was missing; whether it is there now is to be seen by asking once more.
        """
        run_id = self.state.mlflow_run_id
        if run_id is None or self.state.phase == "done":
            return
        if self.store is None:
            self.store = self._connect()
        points = [
            (key, value, event.t, event.step)
            for event in journal.read(self.folder)
            if event.kind == "metrics"
            for key, value in event.data.items()
        ]
        if missing := self.store.lacks(run_id, points):
            if again := not self.sent_again:
                self.store.metrics(run_id, missing)
                self.sent_again = True
            lost = f"{len(missing)} numbers that MLflow had taken were not there"
            raise NotYetError(f"{lost}, and were sent again" if again else f"{lost} after they were sent again")

    def _to_disk(self) -> None:
        """What MLflow gets must outlive a power failure here: a resume that did not know of it would send it again."""
        with self.path.open("rb") as file:
            os.fsync(file)

    def _connect(self) -> Store:
        from budwood.mlflow_store import Store

        parts = urlsplit(self.address)
        if parts.scheme in ("http", "https") and parts.password:  # MLflow would print it with every error
            os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
            os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
            return Store(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
        return Store(self.address)

    def _deliver(self, store: Store, events: list[Event], end: int) -> None:
        first = events[0]
        if first.kind == "run" and self.state.mlflow_run_id is None:
            experiment_id, created = store.open(self._nested(first))
            self._keep(experiment_id=experiment_id, mlflow_run_id=created)
        run_id = self.state.mlflow_run_id
        if run_id is None:
            raise BudwoodError("events come before what the run is", where=str(self.path))
        match first.kind:
            case "run":
                store.describe(run_id, first.data["params"], first.data["tags"])
            case "metrics":
                store.metrics(run_id, self._new_points(events))
            case "tags":
                store.tags(run_id, first.data)
            case "artifact":
                self._artifact(store, run_id, first)
            case "status":
                store.status(run_id, first.data["status"], first.t)
            case "rewind":
                self.sent_again = False
                self.sent_before = journal.taken_back(self.path, end)

    def _nested(self, run: Event) -> Event:
        """``run`` with the study's run as its parent, which has to be in the store first; not if that one moved away."""
        if not run.data.get("within"):
            return run
        study = State.load(self.folder / run.data["within"])
        if study.mlflow_run_id is None:
            raise NotYetError("the run of its study is not in the store yet")
        if study.uri != self.uri:
            return run
        return replace(run, data={**run.data, "parent": study.mlflow_run_id})

    def _new_points(self, events: list[Event]) -> Iterator[tuple[str, float, int, int]]:
        for event in events:
            for key, value in event.data.items():
                point: Point = (key, event.step, repr(value))
                if point not in self.sent_before:
                    yield key, value, event.t, event.step

    def _artifact(self, store: Store, run_id: str, event: Event) -> None:
        try:
            path = inside(self.folder, Path(event.data["path"]))
        except BudwoodError as error:
            return _say(f"not kept as an artifact: {error}")
        if path.exists():
            return store.artifact(run_id, path, event.data["into"])
        return _say(f"{event.data['path']} is gone and could not be kept as an artifact")

    def _failed(self, error: Exception) -> None:
        reason = self._without_secrets(" ".join(str(error).split()) or type(error).__name__)[:500]
        if reason != self.state.error:
            _say(self._without_secrets("".join(traceback.format_exception(error))))
        self._keep(phase="unreachable", error=reason)

    def _without_secrets(self, text: str) -> str:
        parts = urlsplit(self.address)
        given = parts.password or parts.username  # a token may stand alone before the @
        return without_secrets(text.replace(given, "***") if given else text)

    def _keep(self, **changes: object) -> None:
        state = replace(self.state, **changes)  # type: ignore[arg-type]
        if state != self.state:
            self.state = state
            state.save(self.folder)


def groups(entries: Iterator[tuple[int, Event]]) -> Iterator[tuple[int, list[Event]]]:
    """(end offset, events): neighbouring metrics together, up to a batch of points; every other event alone."""
    waiting: list[Event] = []
    end = points = 0
    for offset, event in entries:
        if waiting and (event.kind != "metrics" or points + len(event.data) > POINTS_PER_GROUP):
            yield end, waiting
            waiting, points = [], 0
        if event.kind == "metrics":
            waiting.append(event)
            end, points = offset, points + len(event.data)
        else:
            yield offset, [event]
    if waiting:
        yield end, waiting


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m budwood.sink", description="Send a run's journal to MLflow.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds to go on trying after the run has ended")
    options = parser.parse_args(arguments)
    with exclusive(options.folder / LOCK, wait=True):
        try:
            Sink(options.folder).run(options.deadline)
        except BudwoodError as error:
            replace(State.load(options.folder), phase="failed", error=str(error)).save(options.folder)
            sys.exit(str(error))


if __name__ == "__main__":
    main()
