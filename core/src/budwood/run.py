"""One run from a configuration to a result: ``run``, ``resume``, ``evaluate``, ``export`` and ``explain``."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from budwood import compose, config, journal, machine, report, tracking
from budwood.api import (
    BudwoodError,
    Capabilities,
    CheckpointError,
    Contributions,
    DiskFullError,
    Evaluation,
    Run,
    StateTree,
    Trainer,
)
from budwood.checkpoint import Checkpoints
from budwood.folder import RunFolder, default_output, find_run, new_folder, prepare_output, write_atomically
from budwood.plugins import Activation, Active, PerPlugin, activate
from budwood.progress import Progress, silent
from budwood.redact import redact
from budwood.session import Rhythm, Session


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


@dataclass(frozen=True)
class Plan:
    """A configuration with its plugins imported and every contribution checked; nothing is built yet."""

    data: dict[str, Any]
    model: Any
    activation: Activation
    capabilities: Capabilities
    contributions: Contributions
    run_for: Callable[[Active], Run]

    @property
    def bindings(self) -> list[compose.Binding]:
        return compose.bindings(self.contributions, self.capabilities)

    def build_trainer(self) -> Trainer:
        adapter = self.activation.adapter
        assert adapter is not None
        arguments = {"run": PerPlugin(self.run_for), "contributions": self.contributions}
        trainer: Trainer = self.activation.build(
            "build_trainer", lambda: self.activation.ask("build_trainer", adapter, **arguments), **arguments
        )
        return trainer


def plan(loaded: config.Loaded, folder: Path | None) -> Plan:
    """Activate, resolve and compose. Every problem that can be known before training is raised here."""
    adapter_name, plugin_names = config.names(loaded)
    activation = activate(plugin_names, adapter_name)
    resolved = config.resolve(loaded, activation)
    model, data = resolved.model, resolved.data

    def components(kind: str) -> Sequence[Any]:
        return activation.collect("components", kind=kind)

    def run_for(active: Active) -> Run:
        return Run(
            name=data["name"],
            seed=data["seed"],
            config=data,
            section=None if active is activation.adapter else resolved.section(active.name),
            trainer=model.trainer,
            env_id=data["env"].get("id") if data.get("env") else None,
            folder=folder,
            device=data["device"],
            components=components,
        )

    adapter = activation.adapter
    assert adapter is not None
    capabilities = activation.ask("capabilities", adapter, run=run_for(adapter), target=None)
    contributions = compose.contributions(activation, run_for, capabilities)
    return Plan(data, model, activation, capabilities, contributions, run_for)


def explain(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Plan:
    """What a run would do: its resolved configuration and which contribution binds to which seam, in order."""
    return plan(config.load(source, overrides), None)


def run(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    progress: Progress | None = None,
    **keywords: Any,
) -> Result:
    """Train one run from a YAML file or a mapping.

    ``overrides`` are ``a.b=value`` strings; keyword arguments say the same with ``__`` for the dots:
    ``budwood.run("configs/x.yaml", seed=3, trainer__total_timesteps=50_000)``.
    """
    loaded = config.load(source, [*overrides, *config.keyword_overrides(keywords)])
    output = prepare_output(default_output(loaded.data))
    planned = plan(loaded, output)
    folder = new_folder(output, planned.data["name"], planned.data["seed"])
    trainer = planned.build_trainer()
    folder.create()
    notes: list[str] = []
    if planned.data["init_from"]:
        notes.append(_warm_start(trainer, planned.data["init_from"], output))
    return _train(folder, planned, trainer, None, notes, progress or silent())


def resume(reference: str, overrides: Sequence[str] = (), *, progress: Progress | None = None) -> Result:
    """Continue a run from its last intact checkpoint; a finished run needs more ``trainer.total_timesteps``."""
    folder = find_run(reference)
    loaded = config.load(folder.config_file, overrides)
    planned = plan(loaded, folder.folder)
    found = Checkpoints(folder.checkpoints, planned.data["checkpoint"]["keep"]).latest()
    notes: list[str] = []
    restored: StateTree | None = None
    meta: Mapping[str, Any] = {}
    if found is not None:
        path, damaged = found
        notes += [f"checkpoint {name} is damaged and was left out" for name in damaged]
        restored, meta = Checkpoints(folder.checkpoints, 1).load(path)
        _check_origin(planned.data, meta, path)
        notes.append(f"continuing from {path.name}")
        notes += machine.version_changes(meta["versions"])
    else:
        notes.append("no checkpoint yet: starting from the beginning")
    trainer = planned.build_trainer()
    if restored is not None:
        notes += trainer.load_state_dict(restored["trainer"])
    return _train(
        folder, planned, trainer, (restored, meta) if restored is not None else ({}, {}), notes, progress or silent()
    )


def evaluate(reference: str, episodes: int = 20, seed: int = 20_000) -> tuple[Evaluation, Path]:
    """Fresh episodes of a run's newest checkpoint, and which one that is."""
    trainer, path = _restored_trainer(reference)
    try:
        return trainer.evaluate(episodes, seed), path
    finally:
        trainer.close()


def export(reference: str, to: Path | None = None) -> Path:
    """The trainer's native files of a run's newest checkpoint; default: ``export/`` in the run's folder."""
    target = to or find_run(reference).folder / "export"
    trainer, _ = _restored_trainer(reference)
    try:
        target.mkdir(parents=True, exist_ok=True)
        return trainer.export(target)
    finally:
        trainer.close()


def _restored_trainer(reference: str) -> tuple[Trainer, Path]:
    folder = find_run(reference)
    state, _, path = _newest(folder)
    planned = plan(config.load(folder.config_file), folder.folder)
    trainer = planned.build_trainer()
    trainer.load_policy(state["trainer"])
    return trainer, path


def _newest(folder: RunFolder) -> tuple[StateTree, Mapping[str, Any], Path]:
    store = Checkpoints(folder.checkpoints, 1)
    found = store.latest()
    if found is None:
        raise CheckpointError("this run has no intact checkpoint", where=str(folder.checkpoints), do="Train it first")
    state, meta = store.load(found[0])
    return state, meta, found[0]


def _warm_start(trainer: Trainer, reference: str, output: Path) -> str:
    source = find_run(reference, output)
    state, _, path = _newest(source)
    trainer.load_policy(state["trainer"])
    return f"policy taken from {source.run_id}, {path.name}"


def _check_origin(data: Mapping[str, Any], meta: Mapping[str, Any], path: Path) -> None:
    changed = config.differing(meta["config"], data)
    if changed:
        raise CheckpointError(
            f"this checkpoint comes from another configuration: {', '.join(changed)} changed",
            where=str(path),
            do="Undo the change, or start a new run with init_from=RUN",
        )


def _train(
    folder: RunFolder,
    planned: Plan,
    trainer: Trainer,
    resumed: tuple[StateTree, Mapping[str, Any]] | None,
    notes: list[str],
    progress: Progress,
) -> Result:
    """``resumed``: None for a new run, else (checkpointed state, its meta), both empty if there was no checkpoint."""
    data = planned.data
    state, meta = resumed or ({}, {})
    keep = data["checkpoint"]["keep"]
    versions = machine.versions()
    with folder.locked(), _journal(folder, planned, resumed, meta) as events:
        store = Checkpoints(folder.checkpoints, keep)
        folder.write_status(
            run_id=folder.run_id,
            name=data["name"],
            seed=data["seed"],
            status="running",
            pid=os.getpid(),
            total=trainer.total_steps,
            **({} if resumed else {"started": time.time(), "steps": 0}),
        )

        def save(session: Session) -> Path:
            events.flush(durable=True)
            path = store.save(
                session.steps,
                {"trainer": trainer.state_dict(), "session": session.state_dict()},
                {
                    "steps": session.steps,
                    "env_steps": session.env_steps,
                    "config": data,
                    "versions": versions,
                    "journal": events.count,
                },
            )
            folder.write_status(steps=session.steps, latest=session.latest)
            return path

        session = Session(trainer, planned.contributions, events, progress, _rhythm(data), save, state.get("session"))
        tracker = tracking.start(folder.folder) if data["tracking"]["enabled"] else None
        started = time.perf_counter()
        progress.start(trainer.total_steps, meta.get("steps", 0))
        for note in notes:
            progress.message(note)
        try:
            with _interruptible(session, progress):
                trainer.fit(session)
                session.finish()
            status = "interrupted" if session.interrupted else "stopped" if session.stopped else "finished"
            if status == "stopped":
                notes.append(f"stopped early: {session.stopped}")
            paths = _leave(folder, planned, trainer, session, events, status, time.perf_counter() - started)
        except BaseException as error:
            _record_failure(folder, events, error)
            raise
        finally:
            progress.stop()
            trainer.close()
        folder.write_status(status=status, ended=time.time(), steps=session.steps, latest=session.latest)
        events.status(status)
        events.flush(durable=True)
    mlflow_run_id = None
    if tracker is not None:
        outcome = tracking.finish(folder.folder, on_wait=progress.message)
        mlflow_run_id = outcome.mlflow_run_id
        if outcome.pending:
            notes.append(f"{outcome.pending} events wait for the tracker; they are sent when it answers again")
    return Result(folder.run_id, status, dict(session.latest), paths, mlflow_run_id, notes)


def _rhythm(data: Mapping[str, Any]) -> Rhythm:
    evaluation, checkpoint = data["evaluation"], data["checkpoint"]
    return Rhythm(evaluation["every"], evaluation["episodes"], evaluation["seed"], checkpoint["every"])


@contextmanager
def _journal(
    folder: RunFolder, planned: Plan, resumed: tuple[StateTree, Mapping[str, Any]] | None, meta: Mapping[str, Any]
) -> Iterator[journal.Journal]:
    clean = redact(planned.data)
    write_atomically(folder.config_file, yaml.safe_dump(clean, sort_keys=False, allow_unicode=True))
    write_atomically(folder.folder / "versions.json", machine.versions_json())
    events = journal.Journal(folder.folder, resume_at=meta.get("journal", 0) if resumed is not None else None)
    try:
        yield events
    finally:
        events.close()


def _leave(
    folder: RunFolder,
    planned: Plan,
    trainer: Trainer,
    session: Session,
    events: journal.Journal,
    status: str,
    seconds: float,
) -> dict[str, str]:
    """Write what outlives the run: native files, report, artifacts."""
    del seconds, status
    native = trainer.export(folder.folder / "export")
    events.flush()
    return {"folder": str(folder.folder), "native": str(native)}


def _record_failure(folder: RunFolder, events: journal.Journal, error: BaseException) -> None:
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    try:
        folder.write_status(status=status, error=str(error), ended=time.time())
        events.status(status)
        events.flush()
    except DiskFullError:
        if not isinstance(error, DiskFullError):
            raise


@contextmanager
def _interruptible(session: Session, progress: Progress) -> Iterator[None]:
    """First Ctrl-C or SIGTERM: checkpoint at the next boundary. Second: stop at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_number: int, _frame: Any) -> None:
        if session.interrupted:
            raise KeyboardInterrupt
        session.interrupt()
        progress.message("stopping after this update with a checkpoint; once more to stop at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
