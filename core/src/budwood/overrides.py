"""What a configuration file and ``a.b.c=value`` overrides say together, and which of them said it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from budwood.api.errors import ConfigError
from budwood.plugins import snake
from budwood.redact import MASK, is_secret
from budwood.yaml_io import inline, plain, read

OVERRIDE = " (override)"
"""The place of a value from the command line."""


@dataclass(frozen=True)
class Loaded:
    """Unchecked values: ``origin`` is the file's name, ``lines`` maps dotted paths to its lines, or those of ``file``."""

    data: dict[str, Any]
    origin: str
    lines: Mapping[str, int]
    overridden: frozenset[str] = frozenset()
    file: str = ""

    def place(self, path: str) -> str:
        """Where ``path``, or the nearest part of it that was written, stands: `` (line 7)``, `` (line 7 of FILE)`` or
        `` (override)``."""
        while path:
            if path in self.overridden:
                return OVERRIDE
            if path in self.lines:
                return f" (line {self.lines[path]}{self.file and f' of {self.file}'})"
            if any(_under(given, path) for given in self.overridden):
                return OVERRIDE
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return ""


def keyword_overrides(keywords: Mapping[str, Any]) -> list[str]:
    """``trainer__total_timesteps=5`` of a Python call as an override: ``trainer.total_timesteps=5``."""
    values, problems = plain(keywords)
    if problems:
        raise ConfigError("an argument is not plain data", problems=tuple(problems))
    return [f"{key.replace('__', '.')}={inline(value)}" for key, value in values.items()]


def normalise(loaded: Loaded) -> Loaded:
    """Plugin names in snake_case, and options that are left out as ``{}``; one plugin in two spellings is an error."""
    sections = loaded.data.get("plugins")
    if sections is None:
        return replace(loaded, data={**loaded.data, "plugins": {}})
    if not isinstance(sections, dict):
        return loaded
    spelled: dict[str, str] = {}
    for name in sections:
        if snake(name) in spelled:
            first = spelled[snake(name)]
            raise ConfigError(
                f"plugins.{name}{loaded.place(f'plugins.{name}')} is the same plugin as "
                f"plugins.{first}{loaded.place(f'plugins.{first}')}",
                where=loaded.origin,
                do="Keep one of them",
            )
        spelled[snake(name)] = name
    data = {**loaded.data, "plugins": {snake(name): {} if it is None else it for name, it in sections.items()}}
    return replace(loaded, data=data, lines={_spelled(path): line for path, line in loaded.lines.items()})


def apply(loaded: Loaded, overrides: Sequence[str]) -> Loaded:
    """``loaded`` with every override in turn; all that cannot be applied are in one error."""
    data, lines, overridden = loaded.data, dict(loaded.lines), set(loaded.overridden)
    problems: list[str] = []
    for override in overrides:
        try:
            keys, value = _parse(override)
            data = _set(data, keys, value, ())
        except ConfigError as error:
            problems.append(f"{_shown(override)}: {error.what}. {error.do}")
            continue
        path = ".".join(keys)
        lines = {known: line for known, line in lines.items() if not _under(known, path)}
        overridden = {known for known in overridden if not _under(known, path)} | {path}
    if problems:
        raise ConfigError(
            "an override cannot be applied" if len(problems) == 1 else f"{len(problems)} overrides cannot be applied",
            where=loaded.origin,
            problems=tuple(problems),
        )
    return normalise(replace(loaded, data=data, lines=lines, overridden=frozenset(overridden)))


def _shown(override: str) -> str:
    """As it was written, unless a word of it is named like a secret."""
    key, equals, _ = override.partition("=")
    return f"{key}={MASK}" if equals and any(map(is_secret, re.findall(r"[\w-]+", override))) else override


def _under(known: str, path: str) -> bool:
    return known == path or known.startswith((f"{path}.", f"{path}["))


def _parse(override: str) -> tuple[tuple[str, ...], Any]:
    path, equals, text = override.partition("=")
    keys = tuple(_spelled(path.strip()).split("."))
    if not equals or not all(keys):
        raise ConfigError("an override has the form a.b.c=value", do="Write one key, = and a value")
    value, _ = read(text, "its value")
    return keys, value


def _set(data: Mapping[str, Any], keys: tuple[str, ...], value: Any, above: tuple[str, ...]) -> dict[str, Any]:
    first, *rest = keys
    if not rest:
        return {**data, first: value}
    path = ".".join((*above, first))
    inner = data.get(first)
    if isinstance(inner, list):
        raise ConfigError(f"{path} is a list", do=f"Give the whole list: {path}=[...]")
    if inner is not None and not isinstance(inner, dict):
        raise ConfigError(f"{path} is {inline(inner)}, which has no key {rest[0]!r}", do=f"Give {path} itself")
    return {**data, first: _set(inner or {}, tuple(rest), value, (*above, first))}


def _spelled(path: str) -> str:
    """``plugins.Reward-Shaping.x`` -> ``plugins.reward_shaping.x``."""
    top, _, rest = path.partition(".")
    name, dot, below = rest.partition(".")
    return f"plugins.{snake(name)}{dot}{below}" if top == "plugins" and name else path
