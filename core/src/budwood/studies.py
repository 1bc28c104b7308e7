"""A study: a grid of ordinary runs, stopped and continued at will, and what they say together."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from budwood import config, grid, journal, machine, study_config, study_page, study_table, tracking
from budwood.api import BudwoodError, ConfigError, History
from budwood.folder import DONE, LOCK, STUDY, marked, prepare_output, write_atomically
from budwood.grid import Cell
from budwood.planning import Plan
from budwood.pool import Pool, stopping_on_signals
from budwood.progress import Progress, duration, number, silent
from budwood.redact import redact
from budwood.study_config import Study
from budwood.training import VERSIONS

COPY = "study.yaml"
"""The study as it was last run, base and overrides included."""


@dataclass(frozen=True)
class StudyResult:
    """``status``: finished, interrupted (the study was, or some of its runs), failed (some runs did), or incomplete (only a
    part was asked for).

    ``cells``, ``summary`` and ``pairs`` are the rows of ``study.csv``, ``summary.csv`` and ``pairs.csv``; ``failed`` maps
    run ids to what went wrong; ``paths`` name the folder and every file in it; ``notes`` say what a person should know.
    """

    name: str
    status: str
    cells: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    failed: dict[str, str]
    paths: dict[str, str]
    mlflow_run_id: str | None = None
    notes: list[str] = field(default_factory=list)
    tables: study_table.Tables | None = field(default=None, repr=False)


@dataclass(frozen=True)
class DryRun:
    """``cells``: variant, seed, run, status and steps already taken of each; ``steps``: the most training steps to go."""

    folder: Path
    cells: list[dict[str, Any]]
    steps: int


def study(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    processes: int | None = None,
    only: Sequence[str] = (),
    tables_only: bool = False,
    export: Path | None = None,
    progress: Progress | None = None,
    **keywords: Any,
) -> StudyResult:
    """Run whatever is not finished yet of a study, and tabulate all of it.

    ``source`` and ``overrides`` as for :func:`budwood.run`: a key of the study, or else a key of every run. ``only``: these
    variants. ``tables_only``: train nothing, and do not ask whether the file still describes what was trained. ``export``:
    a folder that tables and figures are copied to.
    """
    found, progress = study_config.load(source, [*overrides, *config.keyword_overrides(keywords)]), progress or silent()
    cells, chosen = _chosen(found, only)
    if tables_only:
        if not any(cell.done for cell in cells):
            raise ConfigError(
                "no run of this study is finished",
                where=str(grid.study_folder(found)),
                do="Run it without --tables-only",
            )
        return _left_behind(found, cells, export, [])
    loaded, planned = grid.plans(found)
    folder = _prepared(found)
    with _locked(folder):
        grid.check_fresh(found, planned, cells)
        _mark(folder, found, cells)
        write_atomically(folder / COPY, config.dump(redact(found.document)))
        events = journal.Journal(folder, resume_at=0 if (folder / journal.FILE).exists() else None)
        try:
            address = _track(events, found, planned)
            sitting = _Sitting(found, planned, cells, chosen, events, progress)
            pool = Pool(
                lambda cell: grid.with_seed(loaded[cell.variant], cell.seed),
                processes or found.config.processes or machine.cores(),
                {"MLFLOW_TRACKING_URI": address} if address else {},
                sitting.ended,
                sitting.moved,
            )
            sitting.run(pool)
            if pool.stopping:
                events.status("interrupted")
                return _interrupted(found, cells)
            notes = [*_version_notes(cells), *_stopped_alone(chosen)]
            result = _left_behind(found, cells, export, notes, wanted=chosen)
            _record(events, result)
        finally:
            events.close()
    sent = tracking.finish(folder, progress=progress.message)
    waiting = sum(not tracking.status(cell.run.folder).complete for cell in chosen if cell.done)
    if not sent.complete or waiting:
        result.notes.append(f"{waiting} runs and the study wait for the tracker; budwood runs --sync sends them")
    return StudyResult(**{**vars(result), "mlflow_run_id": sent.mlflow_run_id})


def dry_run(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, only: Sequence[str] = ()
) -> DryRun:
    """What :func:`study` would do, after every check that it makes."""
    found = study_config.load(source, overrides)
    cells, chosen = _chosen(found, only)
    _, planned = grid.plans(found)
    grid.check_fresh(found, planned, cells)
    rows = [
        {
            "variant": cell.variant,
            "seed": cell.seed,
            "run": cell.run.run_id,
            "status": cell.status,
            "steps": grid.steps_taken(cell),
        }
        for cell in chosen
    ]
    return DryRun(grid.study_folder(found), rows, sum(_to_go(cell, planned) for cell in chosen))


class _Sitting:
    """One go at the cells that are left: what is told of it while it lasts."""

    def __init__(
        self,
        study: Study,
        planned: Mapping[str, Plan],
        cells: Sequence[Cell],
        chosen: Sequence[Cell],
        events: journal.Journal,
        progress: Progress,
    ) -> None:
        self._config, self._events, self._progress = study.config, events, progress
        self._all = len(chosen)
        self._left = [cell for cell in chosen if not cell.done]
        self._size = {cell: grid.steps_to_go(planned[cell.variant]) for cell in chosen}
        self._total = sum(self._size.values())
        self._passed = sum(self._size[cell] for cell in chosen if cell.done)
        self._begun = self._passed + sum(min(self._size[cell], grid.steps_taken(cell)) for cell in self._left)
        self._done, self._failed = self._all - len(self._left), 0
        self._phase = ""

    def run(self, pool: Pool) -> None:
        if self._done:
            self._progress.message(f"{self._done} of {self._all} runs were finished before")
        if not self._left:
            return
        self._progress.start(self._total, self._begun)
        try:
            with stopping_on_signals(pool, self._progress.message):
                pool.run(self._left)
        finally:
            self._progress.stop()

    def ended(self, cell: Cell, error: str) -> None:
        if cell.done:
            self._done += 1
            self._passed += self._size[cell]
            self._events.metrics({"runs finished": float(self._done)}, self._done)
            self._events.flush()
            history = journal.history(cell.run.folder)
            self._progress.message(f"{cell.run.run_id} {cell.status}: {self._newest(cell, history)}")
            if self._done == 1:
                self._warn_early(history)
        elif error:
            self._failed += 1
            self._passed += self._size[cell]
            cell.run.write_status(status="failed", error=error, ended=time.time())
            self._progress.message(f"{cell.run.run_id} failed: {' '.join(error.split())}")

    def moved(self, pool: Pool) -> None:
        taken = sum(min(work.steps, self._size[work.cell] or work.steps) for work in pool.working)
        self._progress.update(max(self._begun, self._passed + taken), {})
        training = sum(not work.trained for work in pool.working)
        left = self._all - self._done - self._failed - len(pool.working)
        counts = f"runs: {self._done} done, {training} running, {left} left"
        phase = counts + (f", {self._failed} failed" if self._failed else "")
        if phase != self._phase:
            self._phase = phase
            self._progress.phase(phase)

    def _warn_early(self, history: History) -> None:
        """A metric that the first run did not log may be misspelt; the tables would say so only after the last."""
        for said in study_table.never_logged(self._config, [history]):
            self._progress.message(f"so far {said}")

    def _newest(self, cell: Cell, history: History) -> str:
        main = self._config.main_metric
        metric = self._config.metrics[main]
        found = study_table.measure(history, metric, self._config.budget)
        status = cell.run.status
        reached = "never, " if found.censored else f"{number(found.value)}, "
        return (
            f"{main} {reached}{status.get('env_steps', 0):,} environment steps, "
            f"{duration(status.get('cpu_seconds', 0.0))} of processor time"
        )


def _chosen(found: Study, only: Sequence[str]) -> tuple[list[Cell], list[Cell]]:
    """All cells, and those that are asked for."""
    cells = grid.cells(found)
    if unknown := [variant for variant in only if variant not in found.runs]:
        raise ConfigError(
            f"there is no variant {unknown[0]!r}", where=found.origin, do=f"There are: {', '.join(found.runs)}"
        )
    return cells, [cell for cell in cells if not only or cell.variant in only]


def _prepared(found: Study) -> Path:
    folder = grid.study_folder(found)
    prepare_output(folder.parent)
    prepare_output(folder)
    return folder


def _mark(folder: Path, found: Study, cells: Sequence[Cell]) -> None:
    """Tell the folder from that of a run before any run is begun below it."""
    started = marked(folder).get("started", time.time())
    said = {"name": found.config.name, "runs": [cell.run.run_id for cell in cells], "started": started}
    write_atomically(folder / STUDY, json.dumps(said, indent=1))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with tracking.exclusive(folder / LOCK, wait=False) as free:
        if not free:
            raise BudwoodError(
                "another process is at work on this study", where=str(folder), do="Wait for it, or stop it first"
            )
        yield


def _track(events: journal.Journal, found: Study, planned: Mapping[str, Plan]) -> str | None:
    """Begin the study's own tracked run, if any of its runs is tracked; the address that all share."""
    settings = [plan.model.tracking for plan in planned.values()]
    settings = [setting for setting in settings if setting.enabled] or settings[:1]
    output, enabled = events.folder.parent, settings[0].enabled
    tracking.start(
        events,
        config=redact(found.document),
        experiment=settings[0].experiment,
        uri=settings[0].uri,
        tags={"budwood.study": found.config.name, **machine.tags(), **settings[0].tags},
        output=output,
        enabled=enabled,
    )
    events.artifact(events.folder / COPY)
    return tracking.target(settings[0].uri, output)[0] if enabled else None


def _left_behind(
    found: Study, cells: Sequence[Cell], export: Path | None, notes: list[str], wanted: Sequence[Cell] = ()
) -> StudyResult:
    """Tables, figures and page over what is finished now; ``wanted``: the cells that were to be finished by now."""
    folder = grid.study_folder(found)
    tables = study_table.tabulate(found.config, cells)
    tables = replace(tables, notes=[*tables.notes, *_notes_of_runs(cells)])
    paths = study_page.write(folder, found, cells, tables)
    if export is not None:
        study_page.copy_for_docs(paths, export)
    failed = {cell.run.run_id: cell.run.status.get("error") or "" for cell in cells if cell.status == "failed"}
    complete = all(cell.done for cell in cells)
    interrupted = not all(cell.done for cell in wanted)
    return StudyResult(
        name=found.config.name,
        status="failed" if failed else "interrupted" if interrupted else "finished" if complete else "incomplete",
        cells=tables.cells,
        summary=tables.summary,
        pairs=tables.pairs,
        failed=failed,
        paths={"folder": str(folder), **{name: str(path) for name, path in paths.items()}},
        notes=[*notes, *tables.notes],
        tables=tables,
    )


def _interrupted(found: Study, cells: Sequence[Cell]) -> StudyResult:
    """No tables: who stops a study wants it to stop."""
    rows = [
        {"variant": cell.variant, "seed": cell.seed, "run": cell.run.run_id, "status": cell.status} for cell in cells
    ]
    return StudyResult(found.config.name, "interrupted", rows, [], [], {}, {"folder": str(grid.study_folder(found))})


def _record(events: journal.Journal, result: StudyResult) -> None:
    """Aggregates and files into the study's own tracked run."""
    done = sum(row["status"] in DONE for row in result.cells)
    for row in result.summary:
        known = {name: row[name] for name in ("iqm", "low", "high") if row[name] == row[name]}
        events.metrics({f"{row['metric']}/{row['variant']}/{name}": value for name, value in known.items()}, done)
    for name, path in result.paths.items():
        if name != "folder":
            events.artifact(Path(path))
    events.status("failed" if result.failed else "interrupted" if result.status == "interrupted" else "finished")


def _stopped_alone(chosen: Sequence[Cell]) -> list[str]:
    return [
        f"{cell.run.run_id} was stopped from outside; the same command goes on with it"
        for cell in chosen
        if not cell.done and cell.status != "failed"
    ]


def _notes_of_runs(cells: Sequence[Cell]) -> list[str]:
    """What finished runs say of themselves, each sentence once."""
    said: dict[str, list[str]] = {}
    for cell in cells:
        if cell.done:
            for note in dict.fromkeys(cell.run.status.get("notes", ())):
                said.setdefault(note, []).append(cell.run.run_id)
    return [f"{first}{f' and {len(more)} more' if more else ''}: {note}" for note, (first, *more) in said.items()]


def _version_notes(cells: Sequence[Cell]) -> list[str]:
    """Runs of one study that were made with different versions are compared with care."""
    seen: dict[str, set[str]] = {}
    for cell in cells:
        if cell.done:
            for name, version in json.loads((cell.run.folder / VERSIONS).read_text()).items():
                seen.setdefault(name, set()).add(version)
    return [
        f"the runs were made with different versions of {name}: {', '.join(sorted(versions))}"
        for name, versions in seen.items()
        if len(versions) > 1
    ]


def _to_go(cell: Cell, planned: Mapping[str, Plan]) -> int:
    return 0 if cell.done else max(0, grid.steps_to_go(planned[cell.variant]) - grid.steps_taken(cell))
