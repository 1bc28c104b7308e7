"""mine: which passages suffice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click

from budwood.api.terminal import ProgressLine
from budwood_lcqa_selector.commands import _options as shared
from budwood_lcqa_selector.records import PoolRow, write_rows
from budwood_lcqa_selector.strategies import STRATEGIES

WHY = {
    "mined": "mined",
    "closed_book": "answered without any passage",
    "no_annotation": "answered without any passage, and without annotated evidence to keep",
    "insufficient": "not answered from all candidates together: dropped",
    "no_verdict": "the judge gave no verdict: dropped, asked again next time",
}


@click.command()
@shared.reading
@click.option("--out", type=shared.FILE, required=True, help="Where to write the rows, one JSON object a line.")
@click.option("--strategy", default="loo", show_default=True, type=click.Choice(list(STRATEGIES)))
@click.option("--k", default=20, show_default=True, type=click.IntRange(1), help="Candidates a question.")
@click.option(
    "--closed-book",
    default="drop",
    show_default=True,
    type=click.Choice(["drop", "keep_empty", "annotated"]),
    help="What becomes of a question that is answered without any passage.",
)
@click.option("--orders", default=1, show_default=True, type=click.IntRange(1), help="Elimination orders to try.")
@click.option("--votes", default=1, show_default=True, type=click.IntRange(1), help="Answers a verdict; odd.")
@click.option(
    "--reask", default=0.05, show_default=True, type=click.FloatRange(0, 1), help="Part asked again, for noise."
)
@click.option("--evaluation", is_flag=True, help="Pools as the question alone retrieves them, missing gold not put in.")
@shared.answering
@shared.pools
def command(
    reading: shared.Reading,
    out: Path,
    strategy: str,
    k: int,
    closed_book: Literal["drop", "keep_empty", "annotated"],
    orders: int,
    votes: int,
    reask: float,
    evaluation: bool,
    answering: shared.Answering,
    pools: shared.Pools,
) -> dict[str, Any]:
    """Find, for every question of DATA, a set of passages that suffices and from which none can be left out.

    Candidates are the K best by BM25 for question and answer together. The generator answers from sets of them, the judge says
    whether it is right, the strategy decides what to ask next: loo removes one at a time as the paper does; quickxplain and
    prefix find such a set with far fewer calls.

    Gold that the question alone does not retrieve is put into the pool, for training. Rows to evaluate on are mined with
    --evaluation, from other questions.

    Every answer is kept in the cache at once. After a crash or Ctrl-C the same command goes on where it stopped; with
    everything known it makes no call.

    \b
      budwood lcqa mine questions.jsonl --format shipped --out mined.jsonl
      budwood lcqa mine others.jsonl --format shipped --evaluation --out held_out.jsonl
      budwood lcqa mine musique.jsonl --format musique --strategy quickxplain --out mined.jsonl \\
          --generator http://localhost:8000/v1#qwen3-32b --judge http://localhost:8001/v1#llama-70b
    """
    from budwood_lcqa_selector.answer_cache import AnswerCache
    from budwood_lcqa_selector.mining import Miner, Mining

    shared.refuse_overwriting(out, reading.data)
    if votes % 2 == 0:
        raise click.UsageError(f"--votes {votes}: a majority needs an odd number")
    settings = Mining(
        strategy, k, True, closed_book, orders, votes, reask, answering.seed, answering.concurrency, evaluation
    )
    pooling = pools.pooling()
    path = answering.file(out)
    tally = Tally()
    progress = ProgressLine()

    with AnswerCache(path) as answers:
        asker = answering.asker(answers)
        questions = pools.cut(reading.retrieved())

        def mined() -> Iterator[PoolRow]:
            for result in Miner(asker, settings, pooling).mine(questions):
                tally.add(result)
                progress.show(lambda: f"{tally.line()}  {asker.counts.calls:,} calls, {asker.counts.known:,} known")
                if result.row is not None:
                    yield result.row

        try:
            count = write_rows(out, mined())
        except KeyboardInterrupt:
            click.echo(
                f"\n{answers.count():,} answers are kept in {path}: the same command goes on from there", err=True
            )
            raise
    progress.clear()
    tally.report()
    counts = asker.counts
    click.echo(f"{counts.calls:,} calls made, {counts.known:,} answers known before")
    click.echo(f"{count:,} rows in {out}")
    left_out = reading.say_left_out()
    facts = {"rows": count, "left_out": left_out, "out": str(out), "cache": str(path)}
    return {**facts, **tally.facts(), "made": asdict(counts)}


class Tally:
    """What became of the questions so far."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.calls = self.reasked = self.flipped = self.injected = self.kept = self.gold = 0
        self.recall = 0.0

    def add(self, result: Any) -> None:
        self.outcomes[result.outcome] += 1
        self.calls += result.calls
        self.reasked += result.reasked
        self.flipped += result.flipped
        if result.row is not None:
            self.kept += 1
            self.injected += bool(result.row.injected_ids)
            self.recall += result.row.pool_recall
            self.gold += len(result.row.gold_sets[0])

    def line(self) -> str:
        return f"{self.outcomes.total():,} questions, {self.kept:,} kept"

    def facts(self) -> dict[str, Any]:
        return {
            "questions": self.outcomes.total(),
            "outcomes": dict(self.outcomes),
            "calls": self.calls,
            "mean_set_size": self.gold / self.kept if self.kept else None,
            "mean_pool_recall": self.recall / self.kept if self.kept else None,
            "injected_share": self.injected / self.kept if self.kept else None,
            "reasked": self.reasked,
            "flip_rate": self.flipped / self.reasked if self.reasked else None,
        }

    def report(self) -> None:
        facts = self.facts()
        for outcome, count in self.outcomes.most_common():
            click.echo(f"{count:>7,}  {WHY[outcome]}")
        if self.kept:
            click.echo(
                f"{facts['mean_set_size']:.2f} passages a set, of which the question alone retrieves "
                f"{facts['mean_pool_recall']:.3f}; "
                f"in {facts['injected_share']:.1%} of the rows missing gold was put into the pool"
            )
        if self.reasked:
            click.echo(f"{self.flipped:,} of {self.reasked:,} verdicts that were asked for again came out otherwise")
