"""One request to a chat endpoint, apart from who makes it: when to try again, what an answer means, what may be spent."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from budwood_models.errors import ModelError
from budwood_models.generation import Reply

if TYPE_CHECKING:
    from tenacity import RetryCallState, Retrying

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds. The n-th wait, from 1, is drawn evenly from [0, min(LONGEST_WAIT, FIRST_WAIT 2^(n-1))]: "full jitter"."""
TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
QUOTED = 200
SECRET = 16
"""Characters from which on a key is taken for a secret; a shorter one is a word for servers that want any: EMPTY, none."""
HALF = re.compile("[\ud800-\udfff]")
COUNTED = 2**53
"""No count of tokens is as large: JSON itself keeps whole numbers only up to there."""


class Refused(Exception):  # noqa: N818 - what happened, not an error that a person sees
    """An answer that asking again will not change. ``do`` is the next step for a person."""

    def __init__(self, what: str, do: str = "") -> None:
        super().__init__(what, do)
        self.what, self.do = what, do


class Transient(Refused):
    """A failure that may pass; ``after`` are the seconds that the server asked to wait."""

    def __init__(self, what: str, do: str = "", after: float | None = None) -> None:
        super().__init__(what, do)
        self.after = after


def attempts(retries: int, deadline: float) -> Retrying:
    """Attempts until one does not raise :class:`Transient`: ``1 + retries`` at most, none begun after ``deadline`` seconds."""
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_before_delay

    return Retrying(
        retry=retry_if_exception_type(Transient),
        stop=stop_after_attempt(1 + retries) | stop_before_delay(deadline),
        wait=_pause,
        reraise=True,
    )


def _pause(state: RetryCallState) -> float:
    """Seconds to wait: what the server asked for, else exponential with full jitter."""
    from tenacity import wait_random_exponential

    failure = state.outcome.exception() if state.outcome is not None else None
    jitter = float(wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)(state))
    after = failure.after if isinstance(failure, Transient) else None
    return jitter if after is None else after


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date; None without one that can be read."""
    if not header:
        return None
    try:
        return max(0.0, float(header)) if math.isfinite(float(header)) else None
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - now)
    except ValueError:
        return None


@dataclass(frozen=True)
class Answer:
    """What a server sent."""

    code: int
    headers: Mapping[str, str]
    body: bytes

    def quoted(self, key: str | None) -> str:
        """The beginning of its body without the key, to show in an error; masked before it is cut, which may cut the key."""
        said = self.body.decode(errors="replace").replace("\0", "")  # UTF-16 has them between the letters of a key
        text = " ".join(mask(said, key).split())
        return repr(shorten(text)) if text else "an empty body"


def shorten(text: str) -> str:
    """At most ``QUOTED`` characters of it."""
    return text if len(text) <= QUOTED else text[:QUOTED] + "..."


def interpret(answer: Answer, key: str | None, key_env: str | None) -> Reply:
    """The reply in an answer, or why there is none."""
    code, said = answer.code, "" if answer.code == 200 else answer.quoted(key)
    if code in TRY_AGAIN:
        after = retry_after(answer.headers.get("retry-after"), time.time())
        do = "Lower concurrency or ask less often" if code == 429 else "Try again later; the server's log may say more"
        raise Transient(f"it answered {code}: {said}", do, after)
    if code in (401, 403):
        do = f"Check the key in {key_env}" if key_env else "It wants a key: name the variable that holds it in key_env"
        raise Refused(f"it answered {code}, not authorised: {said}", do)
    if code == 404:
        do = "Check base_url (it usually ends in /v1) and the model's name"
        raise Refused(f"it answered 404, not found: {said}", do)
    if code != 200:
        raise Refused(f"it answered {code}: {said}", "Check base_url, the model's name and parameters")
    try:
        raw = cleaned(json.loads(answer.body), key)
    except (ValueError, RecursionError):
        said = answer.quoted(key)
        raise Transient(f"its answer is no JSON: {said}", "Check base_url; this may be a page of a proxy") from None
    return parse(raw)


def parse(raw: Any) -> Reply:
    """A chat completion as JSON -> its first choice."""
    try:
        choice = raw["choices"][0]
        text, why = choice["message"].get("content"), choice.get("finish_reason")
        if not isinstance(text, str | None):
            raise TypeError("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        keys = sorted(raw) if isinstance(raw, Mapping) else type(raw).__name__
        raise Transient(
            f"its answer holds no message ({keys})", "Check that the server speaks chat completions"
        ) from None
    if text is None and why != "length":
        raise Refused(
            f"its answer holds no text (finish_reason {why!r})", "See whether the model refuses or calls tools"
        )
    return Reply(text or "", *tokens(raw.get("usage")), why == "length", raw)


def tokens(usage: Any) -> tuple[int, int]:
    """(of the prompt, of the completion) as a server counted them; 0 is what it did not count."""
    counts = {} if usage is None else usage
    if isinstance(counts, Mapping):
        read = [counts.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
        if all(type(n) is int and 0 <= n < COUNTED for n in read):
            return read[0], read[1]
    raise Transient(f"its answer counts no tokens in usage but says {shorten(repr(usage))}", "See what the server is")


def mask(text: str, key: str | None) -> str:
    """``text`` without the key, however JSON, repr or an address may write it; a short key only where it is a whole word."""
    if not key:
        return text
    pattern = "".join(_written(character) for character in key)
    return re.sub(pattern if len(key) >= SECRET else rf"(?<!\w){pattern}(?!\w)", "***", text)


def _written(character: str) -> str:
    """A pattern: the character, perhaps behind backslashes, or its number as JSON or an address writes it."""
    plain = re.escape(character) if character.isalnum() else rf"\\{{0,8}}{re.escape(character)}"
    return rf"(?:{plain}|\\{{1,8}}u(?i:{ord(character):04x})|%(?i:{ord(character):02x}))"


def cleaned(data: Any, key: str | None) -> Any:
    """Plain data without the key and with U+FFFD for half a character, in values and names.

    A key that is no secret stays: masked, it would take an ordinary word out of every reply.
    """
    if isinstance(data, dict):
        return {cleaned(name, key): cleaned(value, key) for name, value in data.items()}
    if isinstance(data, list):
        return [cleaned(value, key) for value in data]
    if not isinstance(data, str):
        return data
    text = HALF.sub("\ufffd", data)
    return mask(text, key) if key and len(key) >= SECRET else text


def check_url(base_url: str) -> str:
    """``base_url`` without a slash at its end; refused if it is no address or carries a secret."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        do = "Write it as https://HOST/v1 or http://HOST:PORT/v1"
        raise ModelError(f"{base_url.rpartition('@')[2]!r} is no address of an endpoint", do=do)
    if parts.username or parts.password or parts.query or parts.fragment:
        do = "Leave user, password and what follows ? out; name a variable with the key in key_env"
        raise ModelError(f"the address of {parts.hostname} carries more than a host and a path", do=do)
    return base_url.rstrip("/")


class Budget:
    """Tokens that may be used in all; ``limit`` None means any number. Safe to share between threads."""

    def __init__(self, limit: int | None) -> None:
        self.limit, self.spent, self._reserved = limit, 0, 0
        self._lock = threading.Lock()

    @contextmanager
    def reserve(self, tokens: int, who: str) -> Iterator[Callable[[int], None]]:
        """Hold ``tokens`` for a request; the block calls what it gets with what was used.

        A prompt's length is known only afterwards, so requests under way may go over the limit by their prompts.
        """
        with self._lock:
            if self.limit is not None and self.spent + self._reserved + tokens > self.limit:
                used = f"{self.spent} tokens of a budget of {self.limit} are used, {self._reserved} are held"
                raise ModelError(
                    f"{used}, and {tokens} more do not fit", where=who, do="Raise token_budget, or ask for less"
                )
            self._reserved += tokens
        try:
            yield self._spend
        finally:
            with self._lock:
                self._reserved -= tokens

    def _spend(self, tokens: int) -> None:
        with self._lock:
            self.spent += tokens
