"""Findings of pydantic in plain English: where in the file, what was given, what was expected, who owns the section."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from budwood.overrides import OVERRIDE
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
        path = _path(keys)
        owner = next((who for prefix, who in owners.items() if f"{path}.".startswith(f"{prefix}.")), "")
        where = f"{path}{place(path)}: " if path else ""
        lines.append(
            (place(path), f"{where}{_message(keys, details, model, data, place)}{f' [{owner}]' if owner else ''}")
        )
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


def _path(keys: Sequence[str | int]) -> str:
    path = ""
    for key in keys:
        path = child(path, key)
    return path


def _message(
    keys: tuple[str | int, ...],
    details: Sequence[ErrorDetails],
    model: type[BaseModel],
    data: Mapping[str, Any],
    place: Callable[[str], str],
) -> str:
    nouns = [noun for detail in details if (noun := _noun(detail))]
    if len(nouns) == len(details):
        return f"expected {' or '.join(dict.fromkeys(nouns))}, got {_given(details[0]['input'], keys)}"
    unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
    said = [_unknown(detail, keys, model, data, place) for detail in unknown]
    said += [_one(detail, keys) for detail in details if detail not in unknown]
    return "; ".join(dict.fromkeys(said))


def _noun(detail: ErrorDetails) -> str | None:
    return _NOUNS.get(re.sub(r"_(type|parsing|from_float|parsing_size)$", "", detail["type"]))


def _one(detail: ErrorDetails, keys: tuple[str | int, ...]) -> str:
    context = detail.get("ctx", {})
    given = _given(detail["input"], keys)
    match detail["type"]:
        case "missing" | "union_tag_not_found":
            return "is required"
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


def _unknown(
    detail: ErrorDetails,
    keys: tuple[str | int, ...],
    model: type[BaseModel],
    data: Mapping[str, Any],
    place: Callable[[str], str],
) -> str:
    """Whose an unknown key is, or which one was meant: first the same word elsewhere, then one that is spelt nearly so."""
    key, (models, others) = str(keys[-1]), _standing_at(model, detail["loc"][:-1])
    known = list(dict.fromkeys(name for one in models for name in _fields(one)))
    if owners := [one for one in others if key in _fields(one)]:
        return _of_another(key, keys[:-1], models[0], owners, data, place)
    near = [path for one in models for path in _below(one, key)] or difflib.get_close_matches(key, known, n=1)
    if near:
        return f"unknown key (did you mean {' or '.join(map(repr, dict.fromkeys(near)))}?)"
    return f"unknown key (known here: {', '.join(known)})" if known else "unknown key (none is known here)"


def _of_another(
    key: str,
    section: Sequence[str | int],
    chosen: type[BaseModel],
    owners: Sequence[type[BaseModel]],
    data: Mapping[str, Any],
    place: Callable[[str], str],
) -> str:
    """A key that another choice knows. Where an override changed the choice alone, the file's keys of the old one are left
    behind, so the override that replaces them all is written out."""
    given: Any = data
    for step in section:
        given = given[step]
    apart = (
        name
        for name in _fields(chosen)
        if _tags(chosen, name) and _tags(owners[0], name) and not _tags(chosen, name) & _tags(owners[0], name)
    )
    if (choice := next(apart, None)) is None or choice not in given:
        return f"unknown key (known here: {', '.join(_fields(chosen))})"
    tags = " or ".join(str(tag) for one in owners for tag in sorted(_tags(one, choice)))
    path, rest = _path(section), [name for name in _fields(chosen) if name != choice]
    said = f"belongs to {choice}: {tags}, and {path}.{choice}{place(f'{path}.{choice}')} is {given[choice]}"
    said += f", which takes {', '.join(rest)}" if rest else ""
    if place(f"{path}.{choice}") != OVERRIDE or place(f"{path}.{key}") == OVERRIDE:
        return said
    kept = redact({name: given[name] for name in (choice, *rest) if name in given})
    return f"{said}; to leave the file's keys behind, give the whole section: '{path}={inline(kept)}'"


def _standing_at(
    model: type[BaseModel], location: Sequence[str | int]
) -> tuple[list[type[BaseModel]], list[type[BaseModel]]]:
    """The models that may stand at pydantic's ``location``: every one that a union allows there, or the chosen one, whose tag
    is part of the location, and then the others beside it."""
    models, others = [model], list[type[BaseModel]]()
    for key in location:
        if isinstance(key, int):
            continue
        if len(models) > 1 and (chosen := [one for one in models if key in _tags(one)]):
            models, others = chosen, [one for one in models if one not in chosen]
            continue
        fields = [fields[key] for owner in models if key in (fields := _fields(owner))]
        if inner := [found for annotation in fields for found in _models(annotation)]:
            models, others = inner, []
    return models, others


def _below(model: type[BaseModel], key: str, outer: tuple[type[BaseModel], ...] = ()) -> Iterator[str]:
    """Dotted paths, from ``model``, of the fields ``key`` in the sections inside it."""
    for name, annotation in _fields(model).items():
        for section in _sections(annotation):
            if section in (*outer, model):
                continue
            if key in _fields(section):
                yield f"{name}.{key}"
            yield from (f"{name}.{path}" for path in _below(section, key, (*outer, model)))


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    """The annotation of every field, by the name that a file calls it."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _tags(model: type[BaseModel], field: str | None = None) -> set[Any]:
    annotations = [annotation for name, annotation in _fields(model).items() if field in (None, name)]
    return {tag for annotation in annotations if get_origin(annotation) is Literal for tag in get_args(annotation)}


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Models whose keys stand right there: not those of a list's items, which no dotted path names."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [model for argument in get_args(annotation) for model in _sections(argument)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
