"""Options that several subcommands share, and their progress line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from budwood_lcqa_selector.loaders import LOADERS, load
from budwood_lcqa_selector.records import DataError, PoolRow

if TYPE_CHECKING:
    from budwood_lcqa_selector.answer_cache import AnswerCache
    from budwood_lcqa_selector.asking import Asker
    from budwood_lcqa_selector.pooling import Pooling
    from budwood_lcqa_selector.retrieval import Kind

FILE = click.Path(dir_okay=False, path_type=Path)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def gathered(kind: type[Any], *options: Decorator) -> Decorator:
    """Options, shown in this order, that a command gets as one object named after ``kind``, which has a field for each."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(**given: Any) -> Any:
            own = {each.name: given.pop(each.name) for each in fields(kind) if each.init}
            return function(**given, **{kind.__name__.lower(): kind(**own)})

        decorated: Callable[..., Any] = call
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


@dataclass(frozen=True)
class Reading:
    """Which rows a command reads; ``left_out``: numbers of the records that were passed over so far."""

    data: Path
    format: str
    limit: int | None
    left_out: list[int] = field(default_factory=list, init=False)

    def rows(self) -> Iterator[PoolRow]:
        return islice(load(self.data, self.format, self.left_out), self.limit)

    def retrieved(self) -> Iterator[PoolRow]:
        """Rows whose passages are what retrieval or the data gave. :raises DataError: see :func:`refuse_injected`."""
        return refuse_injected(self.rows(), self.data)

    def say_left_out(self) -> int:
        """How many, once the rows are read."""
        count = len(self.left_out)
        if count:
            click.echo(f"{count:,} record{'s'[: count > 1]} of {self.data} left out, for the reason given in a warning")
        return count


reading = gathered(
    Reading,
    click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path)),
    click.option(
        "--format",
        default="rows",
        show_default=True,
        type=click.Choice(list(LOADERS)),
        help="How DATA is written; rows is what these commands write, shipped a question a line with passages and gold_ids.",
    ),
    click.option("--limit", type=click.IntRange(1), help="Only the first so many questions."),
)


@dataclass(frozen=True)
class Pools:
    """How documents become pools."""

    retriever: Kind
    size: int
    budget: int
    encoder: str
    chunker: str
    chunk_tokens: int

    def pooling(self) -> Pooling:
        from budwood_lcqa_selector.parts import encoder_named
        from budwood_lcqa_selector.pooling import Pooling

        return Pooling(
            self.retriever, self.size, self.budget, None if self.retriever == "bm25" else encoder_named(self.encoder)
        )

    def cut(self, rows: Iterable[PoolRow]) -> Iterator[PoolRow]:
        """Rows whose passages are chunks of what they were; which of those are gold is then unknown."""
        from budwood_lcqa_selector.chunking import cut
        from budwood_lcqa_selector.parts import chunker_named

        if self.chunker == "identity":
            yield from rows
            return
        chunk = chunker_named(self.chunker, self.chunk_tokens, self.encoder)
        for row in rows:
            yield row.with_(passages=tuple(cut(row.passages, chunk)), gold_sets=())


pools = gathered(
    Pools,
    click.option("--retriever", default="bm25", show_default=True, type=click.Choice(["bm25", "dense", "hybrid"])),
    click.option("--size", default=30, show_default=True, type=click.IntRange(1), help="Passages in a pool, at most."),
    click.option(
        "--budget", default=6000, show_default=True, type=click.IntRange(1), help="Tokens in a pool, at most."
    ),
    click.option("--encoder", default="minilm", show_default=True, help="Embeddings: a short name, hub id or folder."),
    click.option(
        "--chunker",
        default="identity",
        show_default=True,
        type=click.Choice(["identity", "window", "semantic"]),
        help="How documents are cut first; identity for data that comes in passages.",
    ),
    click.option(
        "--chunk-tokens", default=256, show_default=True, type=click.IntRange(1), help="Tokens in a chunk, at most."
    ),
)


@dataclass(frozen=True)
class Answering:
    """Who answers and who judges, and where what they said is kept."""

    generator: str
    judge: str
    key_env: str | None
    judge_key_env: str | None
    max_tokens: int
    cache: Path | None
    concurrency: int
    seed: int

    def file(self, out: Path | None) -> Path | None:
        return self.cache or (out.with_name(out.name + ".answers.sqlite") if out else None)

    def asker(self, answers: AnswerCache) -> Asker:
        from budwood_lcqa_selector.asking import Asker
        from budwood_lcqa_selector.parts import generator_named, judge_named

        return Asker(
            generator_named(self.generator, self.key_env, self.concurrency),
            judge_named(self.judge, self.judge_key_env, self.concurrency),
            answers,
            batch_size=self.concurrency,
            max_tokens=self.max_tokens,
            seed=self.seed,
        )


answering = gathered(
    Answering,
    click.option(
        "--generator",
        default="extractive",
        show_default=True,
        help="Who answers: extractive or symbolic (no model); smollm2, a folder or a hub id; or an endpoint as "
        "http://host/v1#model.",
    ),
    click.option(
        "--judge",
        default="contains",
        show_default=True,
        help="Who decides: contains, exact, f1, or a model, named like the generator.",
    ),
    click.option("--key-env", help="Variable that holds the key of the generator's endpoint."),
    click.option("--judge-key-env", help="The same for the judge's, which never gets the generator's key."),
    click.option("--max-tokens", default=64, show_default=True, type=click.IntRange(1), help="Of an answer, at most."),
    click.option(
        "--cache", type=FILE, help="File of answers; default: beside --out. What it knows is not asked again."
    ),
    click.option(
        "--concurrency", default=8, show_default=True, type=click.IntRange(1), help="Questions asked together."
    ),
    click.option("--seed", default=0, show_default=True),
)


def refuse_overwriting(out: Path, *read: Path | None) -> None:
    """:raises click.UsageError: if ``out`` is one of the files that are read."""
    for path in read:
        if path is not None and out.exists() and path.exists() and out.samefile(path):
            raise click.UsageError(f"--out {out} would overwrite what is read from {path}: give it another name")


def refuse_injected(rows: Iterable[PoolRow], data: Path) -> Iterator[PoolRow]:
    """:raises DataError: at a row with gold put in, whose numbers would be better than retrieval is."""
    for row in rows:
        if row.injected_ids:
            raise DataError(
                f"question {row.qid!r} is of a training set: its pool has gold put in that retrieval missed "
                f"({', '.join(row.injected_ids)})",
                where=str(data),
                do="Start from the questions it was mined from: lcqa pool, or lcqa mine --evaluation, puts nothing in",
            )
        yield row
