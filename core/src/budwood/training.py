"""Training inside a run's folder: journal, tracker, session, checkpoints, report, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budwood import config, journal, leaks, machine, report, tracking
from budwood.api import BudwoodError, Counted, StateTree, Trainer
from budwood.checkpoint import Checkpoints
from budwood.folder import RunFolder, disk_error, going_on, write_atomically
from budwood.outlets import Unheard
from budwood.planning import Plan
from budwood.plugins import PerPlugin
from budwood.progress import Progress
from budwood.redact import redact
from budwood.rhythm import Rhythm
from budwood.session import Session

VERSIONS = "versions.json"


@dataclass(frozen=True)
class Result:
    """What a run left behind. ``status``: finished, stopped (a plugin asked), or interrupted (Ctrl-C).

    ``metrics`` are the last values of everything logged; ``paths`` name folder, config, events, checkpoint, report and the
    trainer's native file; ``notes`` say what a person should know, e.g. what a resume could not continue exactly.
    """

    run_id: str
    status: str
    metrics: dict[str, float]
    paths: dict[str, str]
    mlflow_run_id: str | None
    notes: list[str] = field(default_factory=list)
    first: bool = True
    """False in the processes of a run that leave it to process 0 to write and to speak."""


def train(
    folder: RunFolder,
    planned: Plan,
    trainer: Trainer,
    restored: tuple[StateTree, Mapping[str, Any]] | None,
    notes: list[str],
    progress: Progress,
) -> Result:
    """Train to the end, an interruption or an error. ``restored``: state and meta of the checkpoint to go on from.

    The caller closes the trainer.
    """
    processes = planned.processes
    if not processes.first:
        return _follow(folder, planned, trainer, restored, progress)
    state, meta = restored or ({}, {})
    data = redact(planned.data)
    versions = machine.versions()
    with folder.locked(), _opened(folder, data, versions, meta.get("journal")) as events:
        folder.write_status(**_identity(folder, planned, trainer), status="running", pid=os.getpid(), error=None)
        tracking.start(
            events,
            config=data,
            experiment=data["tracking"]["experiment"],
            uri=planned.data["tracking"]["uri"],
            tags={**_tags(planned), **data["tracking"]["tags"]},
            output=folder.output,
            within=folder.study,
            enabled=data["tracking"]["enabled"],
        )
        events.artifact(folder.config_file)
        events.artifact(folder.folder / VERSIONS)
        store = Checkpoints(folder.checkpoints, data["checkpoint"]["keep"])
        before, began = meta.get("seconds", {}), time.perf_counter()
        cpu_before = folder.status.get("cpu_seconds", 0.0) - machine.cpu_seconds()

        def seconds() -> dict[str, float]:
            """What this run has taken so far, by activity, all its sittings together."""
            now = {"total": time.perf_counter() - began, **session.seconds}
            return {what: spent + before.get(what, 0.0) for what, spent in now.items()}

        def spent() -> dict[str, Any]:
            return {
                "steps": session.steps,
                "env_steps": session.env_steps,
                "cpu_seconds": cpu_before + machine.cpu_seconds(),
            }

        def save(session: Session) -> Path:
            events.sync()
            steps = session.steps
            tree = {"trainer": trainer.state_dict(), "session": session.state_dict()}
            about = {
                "config": data,
                "versions": versions,
                "journal": events.count,
                "seconds": seconds(),
                "begun_with": planned.begun_with,
            }
            path = store.save(steps, tree, about)
            folder.write_status(**spent(), latest=session.latest)
            return processes.from_first(path)

        session = Session(
            trainer, planned.contributions, events, progress, _rhythm(data), save, state.get("session"), processes
        )
        progress.start(length(trainer, data["budget"]), state["session"]["steps"] if state else 0)
        for line in (folder.run_id, *notes):
            progress.message(line)
        begun, held = len(notes), leaks.held()
        try:
            with _interruptible(session, progress), processes.watched(folder.folder):
                trainer.fit(session)
                session.finish()
            for note in leaks.grown(held, leaks.held(), trainer.n_envs):
                session.note(note)
            status = "interrupted" if session.cut_short else "stopped" if session.stopped else "finished"
            paths = _leave(folder, planned, trainer, session, status, seconds(), notes, events)
            stopped_at = session.steps if status == "stopped" else None
            folder.write_status(
                status=status,
                ended=time.time(),
                **spent(),
                latest=session.latest,
                stopped_at=stopped_at,
                notes=session.notes,
            )
            events.status("interrupted" if session.cut_short else "finished")
        except BaseException as error:
            _record_failure(folder, events, error, cpu_before + machine.cpu_seconds())
            if isinstance(error, KeyboardInterrupt):
                progress.message(f"stopped at once; continue with: {going_on(str(folder.folder))}")
            raise
        finally:
            progress.stop()
    for line in notes[begun:]:
        progress.message(line)
    said = [*session.notes, *([f"stopped early: {session.stopped}"] if session.stopped else [])]
    for line in said:
        progress.message(line)
    notes += said
    sent = tracking.finish(folder.folder, progress=progress.message)
    if not sent.complete:
        notes.append(f"{sent}; sending goes on in the background, and budwood runs --sync takes it up again")
        progress.message(notes[-1])
    return Result(folder.run_id, status, dict(session.latest), paths, sent.mlflow_run_id, notes)


def _follow(
    folder: RunFolder,
    planned: Plan,
    trainer: Trainer,
    restored: tuple[StateTree, Mapping[str, Any]] | None,
    progress: Progress,
) -> Result:
    """Train as one of several processes, of which the first does everything that a person sees or that lies on a disk."""
    processes = planned.processes

    def save(session: Session) -> Path:
        trainer.state_dict()
        session.state_dict()
        return processes.from_first(folder.checkpoints)

    state = restored[0]["session"] if restored else None
    session = Session(
        trainer, planned.contributions, Unheard(), progress, _rhythm(planned.data), save, state, processes
    )
    with _interruptible(session, progress), processes.watched(folder.folder):
        trainer.fit(session)
        session.finish()
    return Result(folder.run_id, "interrupted" if session.cut_short else "finished", {}, {}, None, first=False)


def length(trainer: Trainer, budget: int | None) -> int:
    """Steps of training that a run shows its progress by: no more than ``budget``, which is in environment steps, where a step
    is one of those."""
    counts_others = isinstance(trainer, Counted) and trainer.env_steps() is not None
    return trainer.total_steps if budget is None or counts_others else min(trainer.total_steps, budget)


def _identity(folder: RunFolder, planned: Plan, trainer: Trainer) -> dict[str, Any]:
    data = planned.data
    return {
        "run_id": folder.run_id,
        "name": data["name"],
        "seed": data["seed"],
        "total": trainer.total_steps,
        "begun_with": planned.begun_with,
        "started": folder.status.get("started", time.time()),
    }


def _tags(planned: Plan) -> dict[str, str]:
    """What a run is made of: budwood, the adapter, every plugin with its version, the commit, the machine."""
    parts = {f"plugin.{active.name}": active.who for active in planned.activation.everyone}
    return {**parts, "trainer": planned.capabilities.trainer, **machine.tags()}


def _rhythm(data: Mapping[str, Any]) -> Rhythm:
    evaluation, checkpoint = data["evaluation"], data["checkpoint"]
    return Rhythm(evaluation["every"], evaluation["episodes"], evaluation["seed"], checkpoint["every"], data["budget"])


@contextmanager
def _opened(
    folder: RunFolder, data: Mapping[str, Any], versions: Mapping[str, str], resume_at: int | None
) -> Iterator[journal.Journal]:
    """The run's journal, after writing down what is being run. ``resume_at``: events a checkpoint counted."""
    again = (folder.folder / journal.FILE).exists()
    write_atomically(folder.config_file, config.dump(data))
    write_atomically(folder.folder / VERSIONS, json.dumps(versions, indent=1))
    events = journal.Journal(folder.folder, resume_at=(resume_at or 0) if again else None)
    try:
        yield events
    finally:
        events.close()


def _leave(
    folder: RunFolder,
    planned: Plan,
    trainer: Trainer,
    session: Session,
    status: str,
    timing: Mapping[str, float],
    notes: list[str],
    events: journal.Journal,
) -> dict[str, str]:
    """Write what outlives the run and say where it is. A plugin's failing report section does not fail the run."""
    try:
        native = trainer.export(folder.folder / "export")
    except OSError as error:
        raise disk_error(error, folder.folder / "export") from error
    newest = Checkpoints(folder.checkpoints, 1).latest()
    kept = [native, *([newest[0]] if newest else [])]
    for note in offer_artifacts(events, kept, planned.data["tracking"]):
        session.note(note)
    history = journal.history(folder.folder)
    run = PerPlugin(planned.run_for)
    try:
        sections = planned.activation.collect("report_sections", run=run, history=history)
    except BudwoodError as error:
        sections = []
        notes.append(f"the report has no sections of plugins: {error}")
    page = report.write(
        folder.folder,
        title=folder.run_id,
        config=redact(planned.data),
        versions=machine.versions(),
        history=history,
        sections=sections,
        evaluations=session.evaluations,
        timing=timing,
        bindings=planned.bindings,
        status=status,
        notes=session.notes,
        **({"unit": trainer.unit} if isinstance(trainer, Counted) else {}),
    )
    notes += offer_artifacts(events, [page], planned.data["tracking"])
    return {
        "folder": str(folder.folder),
        "report": str(page),
        "native": str(native),
        "checkpoint": str(newest[0]) if newest else "",
        "config": str(folder.config_file),
        "events": str(folder.folder / journal.FILE),
    }


def offer_artifacts(events: journal.Journal, paths: Sequence[Path], tracked: Mapping[str, Any]) -> list[str]:
    """Have the tracker keep ``paths`` of the run's folder, except those that are too large to lie there a second time.

    What there is to say of those.
    """
    limit = tracked["artifact_megabytes"]
    large, refused = [], []
    for path in paths:
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files) / 1e6
        if limit is not None and size > limit:
            large.append(f"{path.relative_to(events.folder)} ({size:,.0f} MB)")
        else:
            try:
                events.artifact(path)
            except BudwoodError as error:  # a link out of the folder: the run is trained all the same
                refused.append(f"not sent to the tracker: {error}")
    if not tracked["enabled"]:
        return []
    if large:
        sizes = ", ".join(large)
        refused.append(f"not sent to the tracker, being larger than tracking.artifact_megabytes ({limit}): {sizes}")
    return refused


def _record_failure(folder: RunFolder, events: journal.Journal, error: BaseException, cpu_seconds: float) -> None:
    status: journal.RunStatus = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    try:
        folder.write_status(status=status, error=str(error), ended=time.time(), cpu_seconds=cpu_seconds)
        events.status(status)
    except BudwoodError:  # the disk that ended the run refuses this too: what ended it is the news
        if not isinstance(error, BudwoodError):
            raise


@contextmanager
def _interruptible(session: Session, progress: Progress) -> Iterator[None]:
    """First Ctrl-C or SIGTERM: checkpoint at the next boundary. Second: stop at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: Any) -> None:
        if session.interrupting:
            raise KeyboardInterrupt
        session.interrupt()
        session.note(f"interrupted by {signal.Signals(number).name}")
        now = "when the evaluation is over" if session.trained else "after this update"
        progress.message(f"stopping {now} with a checkpoint; once more to stop at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
