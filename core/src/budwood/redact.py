"""Secrets are replaced by ``***`` before anything is written to disk or sent to a tracker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
ENDINGS = ("token", "password", "passwd", "secret", "apikey", "accesskey", "privatekey", "authorization")
SPECIAL_TOKENS = re.compile(r"(eos|bos|pad|unk|sep|cls|mask|image|fakeimage|globalimage|endofutterance)token")
"""Keys that end alike and name a word of a vocabulary."""

_USER = re.compile(r"(?<=://)[^/\s?#]+@")
_QUERY = re.compile(r"([?&][\w.-]*(?:token|password|secret|api[_-]?key)=)[^&\s#]+", re.IGNORECASE)


def is_secret(key: str) -> bool:
    """Whether a key's name says that its value is secret: ``hub_token``, ``apiKey``, ``db-password``."""
    name = re.sub(r"[-_]", "", key).lower()
    return name.endswith(ENDINGS) and not SPECIAL_TOKENS.fullmatch(name)


def redact(data: Any) -> Any:
    """A copy of plain data without secrets: values under secret keys, pydantic secrets, and credentials inside URLs."""
    if isinstance(data, Mapping):
        return {key: MASK if is_secret(str(key)) and _hides(item) else redact(item) for key, item in data.items()}
    if isinstance(data, (list, tuple)):
        return [redact(item) for item in data]
    if isinstance(data, str):
        return _QUERY.sub(rf"\g<1>{MASK}", _USER.sub(f"{MASK}@", data))
    return MASK if hasattr(data, "get_secret_value") else data


def is_masked(value: Any) -> bool:
    """Whether ``value`` is text that lost a secret to :func:`redact`."""
    return isinstance(value, str) and (value == MASK or f"://{MASK}@" in value or f"={MASK}" in value)


def _hides(value: Any) -> bool:
    return value is not None and not isinstance(value, bool) and value not in ("", [], {})
