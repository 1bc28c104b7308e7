"""Findings of pydantic in plain English: where in the file, what was given, what was expected, who owns the section."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from budwood.redact import is_secret, redact
from budwood.yaml_io import child, inline

_NOUNS = {
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "string": "text",
    "bytes": "text",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "keys with values",
    "model": "keys with values",
    "model_attributes": "keys with values",
    "dataclass": "keys with values",
    "mapping": "keys with values",
    "path": "a path",
}
_COMPARISONS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}


def explain(
    error: ValidationError,
    model: type[BaseModel],
    data: Mapping[str, Any],
    place: Callable[[str], str],
    owners: Mapping[str, str],
) -> list[str]:
    """One line a path, in the order of the file. ``place`` says where a path stands, ``owners`` who owns a prefix."""
    found: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_keys(detail, data), []).append(detail)
    lines = []
    for keys, details in found.items():
        path = ""
        for key in keys:
            path = child(path, key)
        owner = next((who for prefix, who in owners.items() if f"{path}.".startswith(f"{prefix}.")), "")
        where = f"{path}{place(path)}: " if path else ""
        lines.append((place(path), f"{where}{_message(keys, details, model)}{f' [{owner}]' if owner else ''}"))
    return [line for _, line in sorted(lines, key=lambda pair: _line_number(pair[0]))]


def _line_number(place: str) -> float:
    number = re.search(r"\d+", place)
    return int(number.group()) if number else float("inf")


def _keys(detail: ErrorDetails, data: Mapping[str, Any]) -> tuple[str | int, ...]:
    """The keys that lead to the value in the file: pydantic's location without the branches of unions."""
    keys: list[str | int] = []
    value: Any = data
    location = detail["loc"]
    for step, key in enumerate(location):
        missing = detail["type"] == "missing" and step == len(location) - 1
        if missing or (isinstance(value, dict) and key in value):
            keys.append(key)
            value = None if missing else value[key]
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            keys.append(key)
            value = value[key]
    if detail["type"].startswith("union_tag"):
        keys.append(detail["ctx"]["discriminator"].strip("'"))
    return tuple(keys)


def _message(keys: tuple[str | int, ...], details: Sequence[ErrorDetails], model: type[BaseModel]) -> str:
    nouns = [noun for detail in details if (noun := _noun(detail))]
    if len(nouns) == len(details):
        return f"expected {' or '.join(dict.fromkeys(nouns))}, got {_given(details[0]['input'], keys)}"
    return "; ".join(dict.fromkeys(_one(detail, keys, model) for detail in details))


def _noun(detail: ErrorDetails) -> str | None:
    return _NOUNS.get(re.sub(r"_(type|parsing|from_float|parsing_size)$", "", detail["type"]))


def _one(detail: ErrorDetails, keys: tuple[str | int, ...], model: type[BaseModel]) -> str:
    context = detail.get("ctx", {})
    given = _given(detail["input"], keys)
    match detail["type"]:
        case "missing" | "union_tag_not_found":
            return "is required"
        case "extra_forbidden":
            return _unknown(str(keys[-1]), _known(model, detail["loc"][:-1]))
        case "literal_error" | "enum":
            return f"expected {context['expected']}, got {given}{_meant(detail['input'], context['expected'])}"
        case "union_tag_invalid":
            tags = context["expected_tags"]
            return f"expected {tags}, got {context['tag']!r}{_meant(context['tag'], tags)}"
        case "value_error" | "assertion_error":
            return str(context["error"])
        case "finite_number":
            return f"expected a finite number, got {given}"
        case "too_short" | "string_too_short":
            return f"needs at least {context['min_length']} {_unit(detail, context['min_length'])}"
        case "too_long" | "string_too_long":
            return f"takes at most {context['max_length']} {_unit(detail, context['max_length'])}"
        case kind if kind in _COMPARISONS:
            words, key = _COMPARISONS[kind]
            return f"must be {words} {context[key]}, got {given}"
    if noun := _noun(detail):
        return f"expected {noun}, got {given}"
    return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, got {given}"


def _unit(detail: ErrorDetails, count: int) -> str:
    unit = "character" if detail["type"].startswith("string") else "item"
    return unit if count == 1 else f"{unit}s"


def _given(value: Any, keys: tuple[str | int, ...]) -> str:
    if any(is_secret(str(key)) for key in keys):
        return "something else (not shown, being secret)"
    match value:
        case None:
            return "nothing"
        case str():
            text = redact(value)
            return f"the text {text if len(text) <= 40 else text[:37] + '...'!r}"
        case dict():
            return "keys with values"
        case list():
            return "a list"
        case _:
            return inline(value)


def _meant(given: Any, expected: str) -> str:
    near = difflib.get_close_matches(str(given), re.findall(r"'([^']*)'", expected), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _unknown(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"unknown key (did you mean {near[0]!r}?)"
    return f"unknown key (known here: {', '.join(known)})" if known else "unknown key (none is known here)"


def _known(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The keys that may stand at pydantic's ``location``: those of every model that a union allows there, or of the chosen one,
    whose tag is part of the location."""
    models = [model]
    for key in location:
        if isinstance(key, int):
            continue
        if len(models) > 1 and (chosen := [one for one in models if key in _tags(one)]):
            models = chosen
            continue
        fields = [inner for owner in models for name, inner in owner.model_fields.items() if key in (name, inner.alias)]
        models = [inner for field in fields for inner in _models(field.annotation)] or models
    return list(dict.fromkeys(field.alias or name for owner in models for name, field in owner.model_fields.items()))


def _tags(model: type[BaseModel]) -> set[Any]:
    annotations = (field.annotation for field in model.model_fields.values())
    return {tag for annotation in annotations if get_origin(annotation) is Literal for tag in get_args(annotation)}


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
