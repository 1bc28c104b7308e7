"""The same question in other words, by a language model; the paper makes five a question.

Rewrites share passages, answers, gold and ``root_qid`` with their question, so they stay in its split. Without a language model
there are none: templates would only pretend to be other words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import batched
from typing import TYPE_CHECKING

from budwood_lcqa_selector.records import PoolRow
from budwood_lcqa_selector.text import normalise

if TYPE_CHECKING:
    from budwood_models import Conversation, Generator

INSTRUCTION = """Rewrite the question in {n} other ways. Every rewrite must ask for exactly the same, and keep names and \
numbers. Reply with a JSON list of {n} strings and nothing else."""
_NUMBERED = re.compile(r"^[^\S\n]*(?:\d+[.)]|[-*])[^\S\n]+(\S.*)$", re.MULTILINE)


def with_rewrites(rows: Iterable[PoolRow], generator: Generator, n: int = 5, batch_size: int = 8) -> Iterator[PoolRow]:
    """Every row, followed by up to ``n`` rewrites of it, ids ``<qid>-r1``, ...; fewer where the model repeats itself."""
    for some in batched(rows, batch_size):
        replies = generator.generate([prompt(row.question, n) for row in some], max_tokens=64 * n)
        for row, reply in zip(some, replies, strict=True):
            yield row
            for i, question in enumerate(read_rewrites(reply.text, row.question)[:n], start=1):
                yield row.with_(qid=f"{row.qid}-r{i}", question=question)


def prompt(question: str, n: int) -> Conversation:
    return [{"role": "system", "content": INSTRUCTION.format(n=n)}, {"role": "user", "content": question}]


def read_rewrites(reply: str, question: str) -> list[str]:
    """The strings of a JSON list, else the items of a numbered or bulleted one; none that repeats the question or another."""
    start, end = reply.find("["), reply.rfind("]")
    found: list[str] = []
    try:
        listed = json.loads(reply[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        listed = None
    items = listed if isinstance(listed, list) else _NUMBERED.findall(reply)
    seen = {normalise(question), ""}
    for item in items:
        if isinstance(item, str) and (said := normalise(item)) not in seen:
            seen.add(said)
            found.append(" ".join(item.split()))
    return found
