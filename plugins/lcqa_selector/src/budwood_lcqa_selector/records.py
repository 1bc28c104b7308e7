"""The row everything here reads and writes: a question, its pool of passages, and the sets of them that suffice.

One row is one line of JSON. A file is read line by line, so its size does not matter; a line that cannot be used is
an error that names its number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from budwood.api import BudwoodError
from budwood_lcqa_selector.text import count_tokens


class DataError(BudwoodError):
    """A data file that cannot be read, with the file and the line."""

    exit_code = 2


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Passage(Record):
    """A passage of a pool. ``n_tokens`` is counted if it is not given; ``source_span`` is (start, end) in characters
    of the document it was cut from."""

    id: str
    title: str = ""
    text: str
    n_tokens: int = Field(default_factory=lambda data: count_tokens(f"{data.get('title', '')} {data.get('text', '')}"))
    source_span: tuple[int, int] | None = None

    @property
    def titled(self) -> str:
        """Title and text, as retrieval and prompts see a passage."""
        return f"{self.title}\n{self.text}" if self.title else self.text


class PoolRow(Record):
    """A question with its pool; ``passages`` are in presentation order.

    ``answers``: accepted references.  ``gold_sets``: minimal sufficient sets of passage ids, ``gold_sets[0]`` the
    primary one, none if unknown; they may name passages that retrieval left out.  ``closed_book_ok``: the generator
    answers without any passage.  ``pool_recall``: part of the primary set that retrieval with the question alone
    found; ``injected_ids``: gold passages put in because it did not.
    """

    qid: str
    root_qid: str = Field(default_factory=lambda data: data.get("qid", ""))
    question: str
    answers: tuple[str, ...]
    passages: tuple[Passage, ...]
    gold_sets: tuple[tuple[str, ...], ...] = ()
    gold_origin: Literal["mined", "annotated", "constructed"] = "annotated"
    closed_book_ok: bool = False
    pool_recall: float = Field(default=1.0, ge=0.0, le=1.0)
    injected_ids: tuple[str, ...] = ()
    mine_meta: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ids_are_known_once(self) -> Self:
        ids = [passage.id for passage in self.passages]
        known = set(ids)
        if len(known) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise ValueError(f"two passages have the id {twice!r}")
        for named in (*self.gold_sets, self.injected_ids):
            if len(set(named)) < len(named):
                raise ValueError(f"an id stands twice in {list(named)}")
        if unknown := [name for name in self.injected_ids if name not in known]:
            raise ValueError(f"injected_ids names {unknown[0]!r}, which no passage has")
        return self

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(passage.id for passage in self.passages)

    @property
    def n_tokens(self) -> int:
        return sum(passage.n_tokens for passage in self.passages)

    def chosen(self, ids: Iterable[str]) -> list[Passage]:
        """The passages with these ids, in pool order whatever order the ids have."""
        wanted = set(ids)
        return [passage for passage in self.passages if passage.id in wanted]

    def with_(self, **changes: Any) -> PoolRow:
        """A changed copy, validated like any row."""
        return PoolRow.model_validate({**{name: getattr(self, name) for name in PoolRow.model_fields}, **changes})


class Choice(Protocol):
    """What a selector returns for a row: ``ids`` in any order; ``error`` says why nothing usable came, if so."""

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def valid(self) -> bool: ...
    @property
    def error(self) -> str | None: ...


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not blank. :raises DataError: naming the first line that is no
    object."""
    if not path.is_file():
        raise DataError("no such file", where=str(path), do="Check the path")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                found = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise bad_line(path, number, f"this line is no JSON: {error}") from error
            if not isinstance(found, dict):
                raise bad_line(path, number, f"a line must be a JSON object, this one is a {type(found).__name__}")
            check_text(found, path, number)
            yield number, found


def check_text(found: Any, path: Path, number: int) -> None:
    """JSON can spell half a character (a lone surrogate), which nothing can write or show to a model."""
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise bad_line(path, number, "it has half a character, a lone surrogate") from error


def bad_line(path: Path, number: int, what: str) -> DataError:
    return DataError(what, where=f"{path}, line {number}", do="Correct or remove that line")


def row_of(values: Mapping[str, Any], path: Path, number: int) -> PoolRow:
    """:raises DataError: saying what is wrong with which field of which line."""
    try:
        return PoolRow.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise DataError(
            f"this is no row of a pool ({place}: {message})" if place else message,
            where=f"{path}, line {number}",
            do="Correct the line, or say what the file is with --format, as for data sets in a form of their own",
        ) from error


def read_rows(path: Path) -> Iterator[PoolRow]:
    """Rows of a file that :func:`write_rows` wrote, one at a time."""
    for number, values in read_jsonl(path):
        yield row_of(values, path, number)


def write_rows(path: Path, rows: Iterable[PoolRow]) -> int:
    """Write rows beside ``path`` and rename: the file is whole or not there. Returns how many there were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    count = 0
    with beside.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(row.model_dump_json() + "\n")
            count += 1
    beside.replace(path)
    return count


def split_of(root_qid: str, parts: Mapping[str, float], seed: int = 0) -> str:
    """Which of the named ``parts`` (shares that sum to 1) a question belongs to. Rewrites share their ``root_qid``,
    and with it their part; a question keeps its part whatever other questions the file holds."""
    digest = hashlib.sha256(f"{seed}:{root_qid}".encode()).digest()
    place, edge = int.from_bytes(digest[:8], "big") / 2**64, 0.0
    for name, share in parts.items():
        edge += share
        if place < edge:
            return name
    return list(parts)[-1]
