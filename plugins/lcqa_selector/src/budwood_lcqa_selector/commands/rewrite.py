"""rewrite: the same questions in other words."""

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
@click.option("--out", type=shared.FILE, required=True, help="Where to write the rows, one JSON object a line.")
@click.option("--n", default=5, show_default=True, type=click.IntRange(1), help="Rewrites a question.")
@click.option("--generator", required=True, help="Who rewrites: smollm2, a folder, a hub id, or http://host/v1#model.")
@click.option("--key-env", help="Variable that holds the endpoint's key.")
def command(reading: shared.Reading, out: Path, n: int, generator: str, key_env: str | None) -> dict[str, Any]:
    """Follow every question of DATA by rewrites of it, for a larger training set.

    Rewrites share the root_qid of their question, which keeps them in its split. Replies are kept beside --out: the same
    command goes on after a crash.

    \b
      budwood lcqa rewrite questions.jsonl --format shipped --generator http://localhost:8000/v1#qwen3-32b --out more.jsonl
    """
    from budwood_lcqa_selector.parts import generator_named
    from budwood_lcqa_selector.rewriting import with_rewrites
    from budwood_models import Recorded

    shared.refuse_overwriting(out, reading.data)
    if generator in ("extractive", "symbolic"):
        raise click.UsageError(f"--generator {generator} computes answers; other words need a language model")
    progress = ProgressLine()
    made = {"questions": 0, "rewrites": 0}

    def rows(model: Any) -> Iterator[PoolRow]:
        for row in with_rewrites(reading.rows(), model, n):
            made["rewrites" if "-r" in row.qid.removeprefix(row.root_qid) else "questions"] += 1
            progress.show(lambda: "{questions:,} questions, {rewrites:,} rewrites".format(**made))
            yield row

    with Recorded(generator_named(generator, key_env), out.with_name(out.name + ".replies.sqlite")) as model:
        write_rows(out, rows(model))
    progress.clear()
    click.echo("{questions:,} questions and {rewrites:,} rewrites in {out}".format(**made, out=out))
    return {**made, "left_out": reading.say_left_out(), "out": str(out)}
