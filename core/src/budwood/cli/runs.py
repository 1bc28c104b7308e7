"""runs and ui: what has been trained."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from budwood.cli.output import Answer, headline, say, shown, table

if TYPE_CHECKING:
    from budwood.folder import RunFolder

OUTPUT = click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of runs; default: $BUDWOOD_OUTPUT, else runs/.",
)


@click.command()
@OUTPUT
@click.option("--sync", is_flag=True, help="Send to the tracker what it missed while it was away.")
def runs(output: Path | None, sync: bool) -> Answer:
    """Runs of the output folder, oldest first; a study is one line, and its runs are named in its folder.

    \b
      budwood runs
      budwood runs --sync          after the tracker was away
    """
    from budwood.folder import default_output, list_runs

    folder = output or default_output()
    found = list_runs(folder)
    if not found:
        say(f"no runs under {folder}")
    grids: dict[Path, list[RunFolder]] = {}
    for run in found:
        if run.study:
            grids.setdefault(run.study, []).append(run)
    rows = [_row(run) for run in found if not run.study] + [_study_row(*grid) for grid in grids.items()]
    if rows:
        lines = [{**row, "steps": f"{row['steps']:,}", "result": _result(row)} for row in rows]
        table(lines, ["name", "status", "steps", "result", "started", "id"])
    return Answer(rows, _sync(folder) if sync else 0)


def _study_row(folder: Path, runs: list[RunFolder]) -> dict[str, Any]:
    """``runs``: those that were ever begun; a study counts those that it still has, all of them if its mark is damaged."""
    from budwood.folder import DONE, marked

    said = marked(folder)
    ids = said.get("runs", [run.run_id for run in runs])
    done = sum(run.run_id in ids and run.status["status"] in DONE for run in runs)
    return {
        "name": said.get("name", folder.name),
        "status": f"study, {done} of {len(ids)} runs finished",
        "steps": sum(run.status.get("steps", 0) for run in runs),
        "return": None,
        "headline": None,
        "started": _when(said.get("started")),
        "id": folder.name,
    }


def _row(run: RunFolder) -> dict[str, Any]:
    status = run.status
    latest = status.get("latest", {})
    return {
        "name": status.get("name", ""),
        "status": status.get("status", "unknown"),
        "steps": status.get("steps", 0),
        "return": latest.get("eval/return_mean"),
        "headline": headline(latest),
        "started": _when(status.get("started")),
        "id": run.run_id,
    }


def _when(started: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(started)) if started else ""


def _result(row: dict[str, Any]) -> str:
    return "" if row["headline"] is None else shown(*row["headline"])


def _sync(output: Path) -> int:
    """Send what is left of every journal, or wait for the process that is sending it already; the exit code."""
    from budwood import tracking

    waiting = tracking.pending(output)
    tracking.replay(output)
    for folder in waiting.folders:
        say(f"{folder.name}: {tracking.finish(folder, patience=2 * tracking.PATIENCE_SECONDS)}")
    for error in waiting.damaged:
        say(f"not sent: {error}")
    return 1 if waiting.damaged else 0


@click.command()
@OUTPUT
def ui(output: Path | None) -> dict[str, str]:
    """MLflow's page over the runs of the output folder, until Ctrl-C; or the address of the server in use.

    \b
      budwood ui
    """
    import os
    import subprocess

    from budwood import tracking
    from budwood.folder import default_output

    page = tracking.ui_command(output or default_output())
    say(f"{page.url}  (Ctrl-C ends it)" if page.command else page.url)
    if page.command:
        with suppress(KeyboardInterrupt):
            subprocess.run(page.command, check=True, env={**os.environ, **page.variables})
    return {"url": page.url}
