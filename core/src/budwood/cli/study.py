"""study and compare: many runs together."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from budwood.cli.groups import SettingsCommand, settings
from budwood.cli.output import Answer, facts, say, table, title

if TYPE_CHECKING:
    from budwood.studies import StudyResult

INTERRUPTED = 130


@click.command(cls=SettingsCommand)
@click.argument("file", metavar="FILE")
@click.argument("overrides", metavar="[NAME=VALUE]...", nargs=-1, callback=settings)
@click.option("--processes", type=click.IntRange(min=1), help="Runs at a time; default: as FILE says, else one a core.")
@click.option("--only", multiple=True, metavar="VARIANT", help="Run this variant only; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Check everything and list the runs; train nothing.")
@click.option("--tables-only", is_flag=True, help="Make tables and figures of what is finished; train nothing.")
@click.option(
    "--export", type=click.Path(file_okay=False, path_type=Path), help="Copy tables and figures to this folder."
)
def study(
    file: str,
    overrides: tuple[str, ...],
    processes: int | None,
    only: tuple[str, ...],
    dry_run: bool,
    tables_only: bool,
    export: Path | None,
) -> Answer:
    """Run a grid of variants and seeds, and compare them with interquartile means and intervals.

    \b
      budwood study morse.yaml
      budwood study morse.yaml --dry-run                     what would run, and how much of it
      budwood study morse.yaml name=try seeds=2 budget=20_000      settings of the study, else of every run

    Every run has a process, one thread and a folder of its own below the study's. Ctrl-C stops with checkpoints; the same
    command goes on, whatever stopped it, and never runs a finished run again. More seeds or variants are added to what is
    there. A run that fails is reported and stops no other.
    """
    from budwood import studies
    from budwood.progress import screen

    if dry_run:
        return _dry(studies.dry_run(file, overrides, only=only))
    result = studies.study(
        file,
        overrides,
        processes=processes,
        only=only,
        tables_only=tables_only,
        export=export,
        progress=screen(),
    )
    options = {"--processes": [processes] if processes else [], "--only": only, "--export": [export] if export else []}
    words = [str(word) for option, values in options.items() for value in values for word in (option, value)]
    return _report(result, shlex.join(["budwood", "study", file, *overrides, *words]))


def _dry(plan: Any) -> Answer:
    rows = [{**row, "steps": f"{row['steps']:,}"} for row in plan.cells]
    table(rows, ["variant", "seed", "status", "steps", "run"])
    from budwood.folder import DONE

    left = sum(row["status"] not in DONE for row in plan.cells)
    say(f"{left} of {len(plan.cells)} runs to go, at most {plan.steps:,} training steps, below {plan.folder}")
    return Answer({"folder": plan.folder, "cells": plan.cells, "left": left, "steps": plan.steps})


def _report(result: StudyResult, again: str) -> Answer:
    from budwood import study_page

    title(f"{result.status}  {result.name}")
    if result.tables is not None:
        _rich(study_page.shown_summary(result.tables))
        if result.pairs:
            _rich(study_page.shown_pairs(result.tables))
    for run, error in result.failed.items():
        say(f"{run} failed: {' '.join(error.split())}")
    for note in result.notes:
        say(note)
    facts(
        {
            **{name: path for name, path in result.paths.items() if not name.endswith(".svg")},
            "mlflow": f"run {result.mlflow_run_id}; open the page with: budwood ui" if result.mlflow_run_id else None,
        }
    )
    if result.status in ("interrupted", "incomplete") or result.failed:
        say(f"Continue with: {again}")
    data = {key: value for key, value in vars(result).items() if key != "tables"}
    return Answer(data, INTERRUPTED if result.status == "interrupted" else 1 if result.failed else 0)


@click.command()
@click.argument("references", metavar="RUN...", nargs=-1, required=True)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Draw this one; may be repeated.")
@click.option(
    "--to", type=click.Path(dir_okay=False, path_type=Path), help="The page; default: compare.html in output."
)
def compare(references: tuple[str, ...], metrics: tuple[str, ...], to: Path | None) -> dict[str, Any]:
    """Overlay RUNs: their last numbers, the settings in which they differ, and their curves on one page.

    \b
      budwood compare hopper-s0 hopper-s1
      budwood compare hopper-s0 hopper-s1 --metric train/loss
    """
    from budwood.comparison import compare as overlay

    found = overlay(references, metrics, to)
    if found.metrics:
        _rich(found.metrics)
    else:
        say("these runs have no metric in common")
    if found.settings:
        _rich(found.settings)
    say(str(found.page))
    return vars(found)


def _rich(rows: list[dict[str, Any]]) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    from budwood.progress import number

    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for column in rows[0]:
        right = any(isinstance(row[column], (int, float)) for row in rows)
        drawn.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(_shown(value, number) for value in row.values()))
    width = None if sys.stdout.isatty() else 10_000  # a file or pipe has no width to wrap at
    Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False).print(drawn, "")


def _shown(value: Any, number: Any) -> str:
    if isinstance(value, float):
        return number(value) if value == value else ""
    return "" if value is None else str(value)
