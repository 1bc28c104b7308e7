"""pool: the passages a question's answer is looked for in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from budwood.api.terminal import ProgressLine
from budwood_lcqa_selector.commands import _options as shared
from budwood_lcqa_selector.records import PoolRow, write_rows


@click.command()
@shared.reading
@click.option("--out", type=shared.FILE, required=True, help="Where to write the pools, one JSON object a line.")
@shared.pools
def command(reading: shared.Reading, out: Path, pools: shared.Pools) -> dict[str, Any]:
    """Cut documents into passages and keep, for every question of DATA, those most similar to it.

    Retrieval sees the question alone, as at test time, and nothing is put in: gold that it misses stays missed, and
    pool_recall says so. For training sets use mine, which makes its own pools.

    \b
      budwood lcqa pool hotpot.json --format hotpotqa --out pools.jsonl
      budwood lcqa pool qasper.jsonl --format longbench --chunker semantic --retriever hybrid --out pools.jsonl
    """
    shared.refuse_overwriting(out, reading.data)
    pooling = pools.pooling()
    progress = ProgressLine()
    recalls: list[float] = []
    sizes: list[int] = []

    def pooled() -> Iterator[PoolRow]:
        for row in pools.cut(reading.retrieved()):
            made = pooling.pool(row)
            sizes.append(len(made.passages))
            if made.gold_sets:
                recalls.append(made.pool_recall)
            progress.show(lambda: f"{len(sizes):,} questions")
            yield made

    count = write_rows(out, pooled())
    progress.clear()
    recall = sum(recalls) / len(recalls) if recalls else None
    mean_size = sum(sizes) / max(1, count)
    click.echo(f"{count:,} questions, {mean_size:.1f} passages each, in {out}")
    if recall is not None:
        click.echo(f"{recall:.3f} of the annotated evidence is in the pools")
    left_out = reading.say_left_out()
    return {"questions": count, "left_out": left_out, "mean_size": mean_size, "pool_recall": recall, "out": str(out)}
