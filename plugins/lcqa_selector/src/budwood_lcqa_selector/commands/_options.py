"""Options that several subcommands share, and their progress line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click

from budwood_lcqa_selector.loaders import LOADERS, load
from budwood_lcqa_selector.records import DataError, PoolRow

FILE = click.Path(dir_okay=False, path_type=Path)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def options(*each: Decorator) -> Decorator:
    """Several options as one decorator, shown in this order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(each):
            function = option(function)
        return function

    return decorate


reading = options(
    click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path)),
    click.option(
        "--format",
        "kind",
        default="rows",
        show_default=True,
        type=click.Choice(list(LOADERS)),
        help="How DATA is written; rows is what these commands write, shipped a question a line with passages and gold_ids.",
    ),
    click.option("--limit", type=click.IntRange(1), help="Only the first so many questions."),
)

pooling = options(
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

answering = options(
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


def rows_of(data: Path, kind: str, limit: int | None) -> Iterator[PoolRow]:
    return islice(load(data, kind), limit)


def retrieved(rows: Iterable[PoolRow], data: Path) -> Iterator[PoolRow]:
    """``rows`` whose passages are what retrieval or the data gave. :raises DataError: at one with gold put in, whose
    numbers would be better than retrieval is."""
    for row in rows:
        if row.injected_ids:
            raise DataError(
                f"question {row.qid!r} is of a training set: its pool has gold put in that retrieval missed "
                f"({', '.join(row.injected_ids)})",
                where=str(data),
                do="Start from the questions it was mined from: lcqa pool, or lcqa mine --evaluation, puts nothing in",
            )
        yield row


class Progress:
    """A line that is rewritten on a terminal; elsewhere a new one every ten seconds. On standard error."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else 10.0
        self._next = time.monotonic() + self._every

    def show(self, line: Callable[[], str]) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every
        click.echo(f"\r\x1b[K{line()}" if self._terminal else line(), nl=not self._terminal, err=True)

    def clear(self) -> None:
        if self._terminal:
            click.echo("\r\x1b[K", nl=False, err=True)
