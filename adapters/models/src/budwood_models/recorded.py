"""Replies kept on disk: asked once, then read. For repeatable tests, for resuming, and to read what was said.

The key of a reply is a digest of the generator's identity, the conversation and the parameters of the request; all of them
stand beside it in plain JSON.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from budwood_models.errors import ModelError
from budwood_models.generation import (
    Conversation,
    Generator,
    Reply,
    Streaming,
    canonical,
    check,
    copies,
    in_order,
    shown,
)

BUSY_SECONDS = 30.0
TABLE = """
CREATE TABLE IF NOT EXISTS replies (
  key TEXT PRIMARY KEY, identity TEXT NOT NULL, conversation TEXT NOT NULL, parameters TEXT NOT NULL,
  text TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, truncated INTEGER NOT NULL,
  raw TEXT, asked REAL NOT NULL
)
"""
Mode = Literal["fill", "replay"]


class Recorded:
    """A generator in front of another one. ``fill`` asks ``inner`` for what is not on disk and keeps each reply as it comes
    (all at once from a generator that does not stream); ``replay`` asks nobody and raises.

    ``inner`` may be a bare identity, for replaying without the model. Several processes may share ``path``, on a local disk.
    """

    def __init__(self, inner: Generator | Mapping[str, Any], path: str | Path, mode: Mode = "fill") -> None:
        self.inner = None if isinstance(inner, Mapping) else inner
        self.identity: Mapping[str, Any] = inner if isinstance(inner, Mapping) else inner.identity
        self.path, self.mode = Path(path), mode
        if mode == "replay" and not self.path.is_file():
            raise ModelError("there are no recorded replies", where=str(path), do="Record them first with mode='fill'")
        if mode == "fill" and self.inner is None:
            raise ModelError("filling needs a generator to ask", where=str(path), do="Give one, or use mode='replay'")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(TABLE)
        except sqlite3.DatabaseError as error:
            do = "Move it away, or choose another file"
            raise ModelError(f"this is no file of recorded replies ({error})", where=str(path), do=do) from error

    def generate(
        self, prompts: Sequence[Conversation], *, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[Reply]:
        """One reply a conversation, in order."""
        return in_order(self.stream(prompts, max_tokens=max_tokens, temperature=temperature, seed=seed), len(prompts))

    def stream(
        self, prompts: Sequence[Conversation], *, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[tuple[int, Reply]]:
        """(index, reply): recorded ones first, then new ones as they come, each on disk before it is given."""
        check(prompts)
        numbers = copies(prompts) if temperature > 0 else [0] * len(prompts)
        parameters = [
            {"max_tokens": max_tokens, "temperature": temperature, "seed": seed if temperature > 0 else 0, "copy": copy}
            for copy in numbers
        ]
        keys = [self.key(prompt, given) for prompt, given in zip(prompts, parameters, strict=True)]
        missing: dict[str, list[int]] = {}
        for i, key in enumerate(keys):
            reply = self._read(key)
            if reply is None:
                missing.setdefault(key, []).append(i)
            else:
                yield i, reply
        if not missing:
            return
        if self.mode == "replay" or self.inner is None:
            first = next(iter(missing.values()))[0]
            what = f"{len(missing)} replies are not recorded, the first for prompt {first} ({shown(prompts[first])})"
            raise ModelError(
                what,
                where=str(self.path),
                do="Record them with mode='fill'; another model or parameter is another reply",
            )
        asked = self._to_ask(prompts, keys, missing)
        options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        for position, reply in self._ask(self.inner, [prompts[i] for i in asked], options):
            i = asked[position]
            if keys[i] in missing:
                self._write(keys[i], prompts[i], parameters[i], reply)
                yield from ((j, reply) for j in missing[keys[i]])

    def _ask(
        self, inner: Generator, prompts: list[Conversation], options: dict[str, Any]
    ) -> Iterator[tuple[int, Reply]]:
        return (
            inner.stream(prompts, **options)
            if isinstance(inner, Streaming)
            else enumerate(inner.generate(prompts, **options))
        )

    def _to_ask(self, prompts: Sequence[Conversation], keys: list[str], missing: Mapping[str, list[int]]) -> list[int]:
        """One index a missing key, and with it every copy of its conversation: the number of copies decides their samples."""
        lacking = {canonical(prompts[indices[0]]) for indices in missing.values()}
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        return sorted(i for i in first.values() if canonical(prompts[i]) in lacking)

    def key(self, prompt: Conversation, parameters: Mapping[str, Any]) -> str:
        """The digest under which a reply is kept."""
        text = canonical([self.identity, prompt, parameters])
        return hashlib.sha256(text.encode()).hexdigest()

    def _read(self, key: str) -> Reply | None:
        query = "SELECT text, prompt_tokens, completion_tokens, truncated, raw FROM replies WHERE key = ?"
        with self._lock:
            row = self._db.execute(query, (key,)).fetchone()
        if row is None:
            return None
        text, asked, made, truncated, raw = row
        return Reply(text, asked, made, bool(truncated), None if raw is None else json.loads(raw))

    def _write(self, key: str, prompt: Conversation, parameters: Mapping[str, Any], reply: Reply) -> None:
        raw = None if reply.raw is None else canonical(reply.raw)
        facts = (key, canonical(self.identity), canonical(prompt), canonical(parameters))
        said = (reply.text, reply.prompt_tokens, reply.completion_tokens, int(reply.truncated), raw, time.time())
        try:
            with self._lock:
                self._db.execute("INSERT OR IGNORE INTO replies VALUES (?,?,?,?,?,?,?,?,?,?)", (*facts, *said))
        except sqlite3.OperationalError as error:
            do = "See whether the disk is full and whether another process holds the file"
            raise ModelError(f"a reply could not be kept: {error}", where=str(self.path), do=do) from error

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
