"""What a picker's answer says: the chosen ids, or in which way the answer is malformed.

The form is ours, since the paper states only that answers are structured: one JSON object with ``rationale`` before
``ids``, so that the ids are written in the light of the rationale. Time is linear in the length of the text, whatever it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

Malformed = Literal[
    "no_json", "leading_text", "bad_json", "truncated", "trailing_text", "missing_ids", "unknown_id", "duplicate_id"
]
"""No object at all; text before it; not JSON; an object that never ends; text after it; no ``ids``, or not a list of strings
and integers; an id that no passage of the pool has; an id given twice."""
MALFORMED: tuple[Malformed, ...] = get_args(Malformed)

BRACES_AND_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[{}]', re.DOTALL)
BRACES_AND_QUOTES = re.compile(r'[{}]|\\*+"')
FENCE_END = re.compile(r"\}\s*```\s*\Z")
DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Selection:
    """``ids`` in the order given, () if the answer is malformed; ``error`` says how, None for a valid one."""

    ids: tuple[str, ...]
    rationale: str = ""
    error: Malformed | None = None

    @property
    def valid(self) -> bool:
        return self.error is None


def parse(text: str, pool: Collection[str], *, think: bool = False) -> Selection:
    """The selection in ``text`` among the ids of ``pool``.

    With ``think``, anything may stand before the object, the last one counts, and a Markdown fence may close after it.
    """
    answer = text.strip()
    if think:
        answer = answer[_last_object(answer) :]
        if FENCE_END.search(answer[-64:]):
            answer = answer[: answer.rindex("}") + 1]
    if not answer.startswith("{"):
        return Selection((), error="leading_text" if "{" in answer else "no_json")
    try:
        found, end = DECODER.raw_decode(answer)
    except (ValueError, RecursionError):
        return Selection((), error="bad_json" if _closed(answer) else "truncated")
    if end < len(answer):
        return Selection((), error="trailing_text")
    return _selection(found, pool)


def _selection(found: dict[str, Any], pool: Collection[str]) -> Selection:
    given = found.get("ids")
    # type() and not isinstance: true and false are no ids.
    if not isinstance(given, list) or any(type(item) not in (str, int) for item in given):
        return Selection((), error="missing_ids")
    ids = tuple(str(item) for item in given)
    if any(item not in pool for item in ids):
        return Selection((), error="unknown_id")
    if len(set(ids)) < len(ids):
        return Selection((), error="duplicate_id")
    rationale = found.get("rationale", "")
    return Selection(ids, _whole(rationale) if isinstance(rationale, str) else json.dumps(rationale))


def _whole(text: str) -> str:
    """JSON can spell half a character (a lone surrogate), which no file takes: U+FFFD instead."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _closed(text: str) -> bool:
    """Whether the object that ``text`` begins with ends: braces outside strings balance."""
    depth = 0
    for match in BRACES_AND_STRINGS.finditer(text):
        token = match.group()
        depth += {"{": 1, "}": -1}.get(token, 0)
        if depth == 0:
            return True
    return False


def _last_object(text: str) -> int:
    """Where the last object of ``text`` begins; read backwards, so that quotes in what precedes it do not matter."""
    opened, closed = text.rfind("{"), text.rfind("}")
    if opened > closed or opened < 0:
        return max(opened, 0)
    depth, quoted = 0, False
    for match in reversed(list(BRACES_AND_QUOTES.finditer(text, 0, closed + 1))):
        token = match.group()
        if token[-1] == '"':
            quoted ^= len(token) % 2 == 1  # after an even number of backslashes a quote is a real one
        elif not quoted:
            depth += 1 if token == "}" else -1
            if depth == 0:
                return match.start()
    return text.index("{")
