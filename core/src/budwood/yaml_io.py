"""YAML in and out: plain values only, the line of every key, and numbers as people write them.

PyYAML parses; the values are made here, from its node tree, so that nothing in a file can name a Python object.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import yaml

from budwood.api.errors import ConfigError

STANDARD = "tag:yaml.org,2002:"
LIMIT = 100_000
"""Values in one file, aliases expanded; a run's configuration has hundreds."""

_INT = re.compile(r"[-+]?(0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+|[0-9]+(_[0-9]+)*([eE]\+?(0?[0-9]|1[0-5]))?)$")
_FLOAT = re.compile(
    r"[-+]?((\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its surprises: ``1e5`` is a number, ``010`` is ten, ``1:30`` and ``2026-01-01`` are text."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  PyYAML's own class attribute


class _Dumper(yaml.SafeDumper):
    """Quotes whatever :class:`_Loader` would read as something else, and writes no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(f"{STANDARD}int", _INT, list("-+0123456789"))
    _kind.add_implicit_resolver(f"{STANDARD}float", _FLOAT, list("-+0123456789."))
for _name in ("bool", "null", "merge"):
    for _first, _resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items():
        for _tag, _pattern in _resolvers:
            if _tag == STANDARD + _name:
                _Loader.add_implicit_resolver(_tag, _pattern, [_first])


def read(text: str, origin: str) -> tuple[Any, dict[str, int]]:
    """``text`` as plain values, and the line of every key and list item by dotted path. ``origin`` is named in errors."""
    try:
        node = yaml.compose(text, _Loader)
        reader = _Reader(origin)
        return (None if node is None else reader.value(node, "")), reader.lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{origin}, line {mark.line + 1}, column {mark.column + 1}" if mark else origin
        raise ConfigError(
            f"this is not readable YAML: {error.problem or error.context}", where=where, do=_advice(error)
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"the character {chr(error.character)!r} is not allowed in YAML",
            where=f"{origin}, line {line}",
            do="Remove it, or write it in double quotes as an escape",
        ) from None
    except RecursionError:
        raise ConfigError("this YAML is nested too deeply", where=origin, do="Use fewer levels") from None


def dump(data: Any) -> str:
    """YAML that :func:`read` reads back as the same plain values."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def inline(value: Any) -> str:
    """One value on one line, as on the right of an override."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")


def child(path: str, key: str | int) -> str:
    """``a.b`` and ``c`` -> ``a.b.c``; ``a.b`` and 0 -> ``a.b[0]``."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def _advice(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    if "'\\t'" in problem:
        return "Indent with spaces, not with tabs"
    if "mapping values are not allowed" in problem:
        return "Check the indentation, and write a text that contains ': ' in quotes"
    if "undefined alias" in problem:
        return "A text that starts with * belongs in quotes"
    return "Check quotes, brackets and indentation just before this place"


class _Reader:
    """Turns a node tree into values; remembers lines, and refuses what is not plain data."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.lines: dict[str, int] = {}
        self._count = 0
        self._open: set[yaml.Node] = set()

    def value(self, node: yaml.Node, path: str) -> Any:
        self._count += 1
        if self._count > LIMIT:
            raise self._refuse(node, f"the file expands to more than {LIMIT:,} values", "Use fewer aliases")
        if node in self._open:
            raise self._refuse(node, "an alias contains itself", "Write the value out")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        self._open.add(node)
        try:
            if node.tag == f"{STANDARD}map" and isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if node.tag == f"{STANDARD}seq" and isinstance(node, yaml.SequenceNode):
                return self._sequence(node, path)
        finally:
            self._open.remove(node)
        raise self._tag(node)

    def _sequence(self, node: yaml.SequenceNode, path: str) -> list[Any]:
        items = []
        for index, item in enumerate(node.value):
            self.lines[child(path, index)] = item.start_mark.line + 1
            items.append(self.value(item, child(path, index)))
        return items

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{STANDARD}merge":
                sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for source in sources:
                    inherited = self.value(source, path)
                    if not isinstance(inherited, dict):
                        raise self._refuse(source, "<< needs a mapping", "Write <<: *NAME, NAME being a mapping")
                    merged = {**inherited, **merged}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{STANDARD}merge":
                continue
            key = self._key(key_node)
            here = child(path, key)
            if key in own:
                raise self._refuse(
                    key_node, f"the key {here!r} was already given on line {self.lines[here]}", "Keep one of them"
                )
            self.lines[here] = key_node.start_mark.line + 1
            own[key] = self.value(value_node, here)
        return {**merged, **own}

    def _key(self, node: yaml.Node) -> str:
        """Keys are text exactly as written, also ``1``, ``on`` and ``null``."""
        if not isinstance(node, yaml.ScalarNode):
            raise self._refuse(node, "a key must be a plain word", "Write keys without brackets")
        self._scalar(node)
        return str(node.value)

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = node.value
        if half := _half(text):
            raise self._refuse(node, f"{half} is half of a character, which no file can hold", "Write the whole one")
        try:
            match node.tag.removeprefix(STANDARD):
                case "str" | "merge":
                    return text
                case "null":
                    return None
                case "bool":
                    return yaml.SafeLoader.bool_values[text.lower()]
                case "int":
                    return _integer(text)
                case "float":
                    return _real(text)
        except (ValueError, KeyError, OverflowError):
            raise self._refuse(
                node, f"{text!r} cannot be read as a number or truth value", "Put it in quotes if it is text"
            ) from None
        raise self._tag(node)

    def _tag(self, node: yaml.Node) -> ConfigError:
        tag = f"!!{node.tag.removeprefix(STANDARD)}" if node.tag.startswith(STANDARD) else node.tag
        if tag.startswith("!!python/"):
            what = f"the tag {tag!r} asks for Python code to be run, and a configuration never runs code"
        else:
            what = f"the tag {tag!r} is not allowed: a configuration holds plain values only"
        return self._refuse(node, what, "Remove the tag and write the value itself")

    def _refuse(self, node: yaml.Node, what: str, do: str) -> ConfigError:
        return ConfigError(what, where=f"{self.origin}, line {node.start_mark.line + 1}", do=do)


def _integer(text: str) -> int:
    """``1_000_000``, ``0x10`` and, being whole, ``1e6``."""
    if re.match(r"[-+]?0[xob]", text):
        return int(text, 0)
    mantissa, _, exponent = text.lower().partition("e")
    return int(f"{mantissa}{'0' * int(exponent or 0)}")


def _real(text: str) -> float:
    special = text.lower().lstrip("+-")
    if special in (".inf", ".nan"):
        return float(text.replace(".", ""))
    value = float(text)
    if math.isinf(value):
        raise OverflowError(text)
    return value


def _half(text: str) -> str:
    """The first surrogate in ``text`` as it is written, or nothing."""
    found = re.search("[\ud800-\udfff]", text)
    return f"\\u{ord(found[0]):04x}" if found else ""


def plain(value: Any, path: str = "") -> tuple[Any, list[str]]:
    """A copy of ``value`` made of dicts, lists, text, numbers, bool and None, and the paths of what is none of these."""
    if value is None or isinstance(value, bool):
        return value, []
    if isinstance(value, str):
        half = _half(value)
        return str(value), [f"{path}: {half} is half of a character, which no file can hold"] if half else []
    if isinstance(value, (Integral, Real)):
        return (int(value) if isinstance(value, Integral) else float(value)), []
    if isinstance(value, Mapping):
        pairs = {str(key): plain(item, child(path, str(key))) for key, item in value.items()}
        bad = [f"{path}: {_half(key)} is half of a character, which no key can hold" for key in pairs if _half(key)]
        return {key: item for key, (item, _) in pairs.items()}, [
            *bad,
            *(one for _, found in pairs.values() for one in found),
        ]
    if isinstance(value, (list, tuple)):
        items = [plain(item, child(path, index)) for index, item in enumerate(value)]
        return [item for item, _ in items], [bad for _, found in items for bad in found]
    if hasattr(value, "__fspath__"):
        return str(value), []
    return None, [f"{path}: {type(value).__name__} is no configuration value"]
