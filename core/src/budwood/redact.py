"""Secrets are replaced by ``***`` before anything is written to disk, printed, or sent to a tracker.

Two ways in: :func:`redact` for data, by the names of keys; :func:`without_secrets` for prose, by the values themselves, which
are those of every variable of the environment and every key of a configuration that is named like a secret.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any
from urllib.parse import quote, unquote, urlsplit

MASK = "***"
ENDINGS = (
    *("token", "password", "passwd", "passphrase", "secret", "credentials"),
    *("apikey", "accesskey", "secretkey", "privatekey", "authorization"),
)
SPECIAL_TOKENS = re.compile(r"(eos|bos|pad|unk|sep|cls|mask|image|fakeimage|globalimage|endofutterance)token")
"""Keys that end alike and name a word of a vocabulary."""
SHORTEST = 8
"""A secret of fewer characters is not looked for in prose, where it could be part of any word."""

_USER = re.compile(r"(?<=://)(?![^/\s?#\"<>:]*:\*\*\*@)[^/\s?#\"<>]+@")
_QUERY = re.compile(r"([?&][\w.-]*(?:token|password|secret|api[_-]?key)=)[^&\s#\"<>]+", re.IGNORECASE)

_known: set[str] = set()
"""Values of secret keys that this process has read from configurations."""


def is_secret(key: str) -> bool:
    """Whether a key's name says that its value is secret: ``hub_token``, ``apiKey``, ``db-password``."""
    name = re.sub(r"[-_]", "", key).lower()
    return name.endswith(ENDINGS) and not SPECIAL_TOKENS.fullmatch(name)


def redact(data: Any) -> Any:
    """A copy of plain data without secrets: values under secret keys, pydantic secrets, credentials inside URLs, and text
    that holds the value of a secret that is known."""
    return _redacted(data, (*_of_environment(), *_known))


def _redacted(data: Any, values: tuple[str, ...]) -> Any:
    if isinstance(data, Mapping):
        return {
            key: MASK if is_secret(str(key)) and _hides(item) else _redacted(item, values) for key, item in data.items()
        }
    if isinstance(data, (list, tuple)):
        return [_redacted(item, values) for item in data]
    if isinstance(data, str):
        return MASK if any(value in data for value in values) else _without_credentials(data)
    return MASK if hasattr(data, "get_secret_value") else data


def is_masked(value: Any) -> bool:
    """Whether ``value`` is text that lost a secret to :func:`redact`."""
    return isinstance(value, str) and (value == MASK or f"://{MASK}@" in value or f"={MASK}" in value)


def remember(data: Any) -> None:
    """Take note of the secrets of a configuration, so that :func:`without_secrets` knows them."""
    _known.update(value for value in _of_data(data) if len(value) >= SHORTEST and MASK not in value)


def without_secrets(text: str) -> str:
    """``text`` without the value of any secret that is known: as it is, and as JSON, HTML and URLs write it."""
    values = {form for value in (*_of_environment(), *_known) for form in _forms(value)}
    for value in sorted(values, key=len, reverse=True):  # the longest first: one may be part of another
        if value in text:
            text = text.replace(value, MASK)
    return _without_credentials(text)


def scrubbed(data: Any) -> Any:
    """A copy of plain data whose texts, keys too, went through :func:`without_secrets`."""
    if isinstance(data, Mapping):
        return {without_secrets(key) if isinstance(key, str) else key: scrubbed(item) for key, item in data.items()}
    if isinstance(data, (list, tuple)):
        return [scrubbed(item) for item in data]
    return without_secrets(data) if isinstance(data, str) else data


def holds_secret(text: str) -> bool:
    """Whether :func:`without_secrets` knows a secret that is part of ``text``."""
    return any(form in text for value in (*_of_environment(), *_known) for form in _forms(value))


def _without_credentials(text: str) -> str:
    return _QUERY.sub(rf"\g<1>{MASK}", _USER.sub(f"{MASK}@", text))


def _of_environment() -> Iterator[str]:
    found = (part for name, text in os.environ.items() for part in _of_data({name: text}))
    return (value for value in found if len(value) >= SHORTEST)


def _of_data(data: Any, secret: bool = False) -> Iterator[str]:
    if isinstance(data, Mapping):
        for key, item in data.items():
            yield from _of_data(item, secret or is_secret(str(key)))
    elif isinstance(data, (list, tuple)):
        for item in data:
            yield from _of_data(item, secret)
    elif hasattr(data, "get_secret_value"):
        yield from _of_data(data.get_secret_value(), True)
    elif isinstance(data, str):
        if secret:
            yield data
        for address in re.findall(r"\w+://[^\s/?#]+@", data):
            yield from _of_address(address)


def _of_address(address: str) -> Iterator[str]:
    """User and password of an address, as they are written and as they are meant; only the first if there is no other."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return
    given = parts.password or parts.username or ""
    yield from (given, unquote(given))


def _forms(value: str) -> Iterator[str]:
    """``value`` as text, JSON, HTML and URLs write it, and as :func:`repr` does."""
    yield from {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], escape(value)}
    yield from {quote(value, safe=""), quote(value), repr(value)[1:-1]} if value.isprintable() else ()


def _hides(value: Any) -> bool:
    return value is not None and not isinstance(value, bool) and value not in ("", [], {})
