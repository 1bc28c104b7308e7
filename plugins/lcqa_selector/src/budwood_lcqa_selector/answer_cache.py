"""Answers and verdicts on disk: what was asked once is never asked again, and a crash loses no more than the call
under way.

One SQLite file in WAL mode. A key is a hash of everything that an answer depends on
(:mod:`budwood_lcqa_selector.asking`), so a file may be shared by any number of data sets, models, prompts and judges.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from budwood.api import DiskFullError
from budwood_lcqa_selector.records import DataError


@dataclass(frozen=True)
class Stored:
    """An answer with its verdict; ``raw`` is the judge's reply; tokens of the generator and of the judge; ``seconds``
    it took."""

    answer: str
    correct: bool
    raw: str
    prompt_tokens: int
    completion_tokens: int
    judge_tokens: int
    seconds: float


_TABLE = """CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, answer TEXT NOT NULL, correct INTEGER NOT NULL, raw TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, judge_tokens INTEGER NOT NULL, seconds REAL NOT NULL
) WITHOUT ROWID"""
_AT_ONCE = 500


class AnswerCache:
    """``path`` None keeps the answers in memory only."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._explained():
            self._db = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=5.0)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(_TABLE)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Stored]:
        """Those of ``keys`` that are known."""
        found: dict[bytes, Stored] = {}
        with self._explained():
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                for key, answer, correct, *rest in self._db.execute(
                    f"SELECT * FROM answers WHERE key IN ({marks})", some
                ):
                    found[key] = Stored(answer, bool(correct), *rest)
        return found

    def put(self, answers: Mapping[bytes, Stored]) -> None:
        """Store all of them, or none if this process dies meanwhile."""
        rows = [(key, *map(_storable, astuple(stored))) for key, stored in answers.items()]
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?,?,?,?,?,?,?,?)", rows)
            except BaseException:
                if self._db.in_transaction:  # SQLite has ended it itself where the disk is full
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def count(self) -> int:
        return int(self._db.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            where = f"answer cache {self.path}"
            if "full" in str(error):
                raise DiskFullError(
                    str(error), where=where, do="Free some space; all answers so far are kept"
                ) from error
            if "locked" in str(error):
                raise DataError(
                    "another process has been writing for 5 s", where=where, do="Wait for it, or name another file"
                ) from error
            raise DataError(
                f"this file cannot be used: {error}", where=where, do="Move it away, or name another"
            ) from error


def _storable(value: object) -> object:
    """Text without lone surrogates, which a model may write and UTF-8 has no bytes for."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
