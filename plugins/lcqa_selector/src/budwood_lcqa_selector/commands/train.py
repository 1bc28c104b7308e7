"""train: a selector head, from rows with evidence, annotated or mined."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from budwood.api.terminal import ProgressLine
from budwood_lcqa_selector.commands import _options as shared
from budwood_lcqa_selector.records import DataError, PoolRow

if TYPE_CHECKING:
    from budwood_lcqa_selector.head_training import Step

FEW = 50
"""Rows to train on, ours: below this a result says nothing of the settings."""
SHOWN = {"evidence_recall": "recall", "evidence_precision": "precision", "evidence_f1": "F1", "size": "passages"}


@click.command()
@shared.reading
@click.option("--out", type=shared.FILE, required=True, help="Where to write the head, a safetensors file.")
@click.option(
    "--held-out",
    type=shared.FILE,
    help="Rows in the format of DATA that the first stage is watched on. Default: a fifth of DATA's questions.",
)
@click.option("--steps", default=300, show_default=True, type=click.IntRange(2), help="At most half of them loose.")
@click.option(
    "--mode",
    default="within",
    show_default=True,
    type=click.Choice(["within", "paper", "beyond", "none"]),
    help="Reading of the size penalty; paper where within learns nothing.",
)
@click.option("--seed", default=0, show_default=True)
def command(
    reading: shared.Reading, out: Path, held_out: Path | None, steps: int, mode: Any, seed: int
) -> dict[str, Any]:
    """Train a selector head, nine weights that need no language model, on the evidence sets of DATA.

    First with a loose limit on how many passages it may pick, until its reward on held-out questions stops rising, then with
    a tight one. Seconds to minutes on one core; the same rows and seed give the same file. Interrupted, it leaves none.

    Data whose evidence is annotated are trained on as they are; without annotation, mine the evidence first. Pools of mined
    training sets have gold put in that retrieval misses. To see how good the head is, evaluate it on other questions,
    annotated or mined with --evaluation.

    \b
      budwood lcqa train questions.jsonl --format shipped --out head.safetensors
      budwood lcqa evaluate others.jsonl --format shipped --no-answers --method head:head.safetensors --method bm25:2
    \b
      budwood lcqa mine questions.jsonl --format shipped --out mined.jsonl
      budwood lcqa mine others.jsonl --format shipped --evaluation --out held_out.jsonl
      budwood lcqa train mined.jsonl --out head.safetensors
      budwood lcqa evaluate held_out.jsonl --no-answers --method head:head.safetensors --method bm25:2
    \b
      budwood lcqa pick --question "Who founded Ann's employer?" --passages pool.jsonl --picker head:head.safetensors
    """
    from budwood_lcqa_selector.evaluation import score
    from budwood_lcqa_selector.head import SelectorHead
    from budwood_lcqa_selector.head_training import Data, Training, greedy_reward, train
    from budwood_lcqa_selector.metrics import summarise
    from budwood_lcqa_selector.stages import NOTHING, PRECISION, RECALL

    shared.refuse_overwriting(out, reading.data, held_out)
    found = list(reading.rows())
    rows = [row for row in found if row.gold_sets]
    without = len(found) - len(rows)
    left_out = reading.say_left_out()
    if held_out is None:
        rows, watched = split(rows, seed)
    else:
        others = replace(reading, data=held_out, limit=None)
        watched = [row for row in others.rows() if row.gold_sets]
        others.say_left_out()
    if not rows or not watched:
        raise DataError(
            f"too few rows with evidence: {len(rows):,} to train on, {len(watched):,} to watch",
            where=str(reading.data if held_out is None or not rows else held_out),
            do="Mine more questions, or name rows of others with --held-out",
        )
    stages = (RECALL.model_copy(update={"max_steps": steps // 2}), PRECISION)
    training = Training(stages, mode, steps=steps)
    progress = ProgressLine()

    def after(at: Step) -> None:
        progress.show(
            lambda: (
                f"step {at.step:,} of {steps:,}, {stages[at.stage].name}: reward {at.reward:.2f}, "
                f"coverage {at.coverage:.2f}, {at.size:.1f} passages"
            )
        )

    head, watching = SelectorHead.fresh(), Data(watched)
    course = train(head, Data(rows), watching, training, seed, after)
    progress.clear()
    head.save(out)
    measured = summarise(list(score(watched, head.choose)), seed)
    reward = greedy_reward(head, watching, training, PRECISION)
    for switch in course.switches:
        click.echo(f"{stages[switch.index].name} from step {switch.step:,}: {switch.reason.replace('_', ' ')}")
    if without:
        click.echo(f"{without:,} of {len(found):,} rows have no evidence and teach nothing")
    told = ", ".join(f"{name} {measured[metric].mean:.3f}" for metric, name in SHOWN.items())
    click.echo(f"trained on {len(rows):,} rows; on {len(watched):,} held out: {told}")
    if any(row.injected_ids for row in watched):
        click.echo("some of their pools have gold put in that retrieval missed: without it the numbers may be lower")
    if reward <= NOTHING:
        advice = "" if len(rows) < FEW else "; try --mode paper"
        click.echo(f"its picks earn no more there than picking nothing: it has learned nothing{advice}")
    if len(rows) < FEW:
        click.echo(f"so few rows teach little that holds for other questions: train on {FEW} or more")
    click.echo(f"the head: {out}")
    return {
        "rows": len(rows),
        "held_out": len(watched),
        "without_evidence": without,
        "left_out": left_out,
        "switches": [{"stage": stages[at.index].name, "step": at.step, "reason": at.reason} for at in course.switches],
        "reward": reward,
        "measured": {metric: vars(measured[metric]) for metric in SHOWN},
        "out": str(out),
    }


def split(rows: Sequence[PoolRow], seed: int) -> tuple[list[PoolRow], list[PoolRow]]:
    """Four fifths of the questions and the rest, drawn by ``seed``; rewrites stay with their question."""
    roots = sorted({row.root_qid for row in rows})
    random.Random(seed).shuffle(roots)
    apart = set(roots[: -(-len(roots) // 5)])
    return [row for row in rows if row.root_qid not in apart], [row for row in rows if row.root_qid in apart]
