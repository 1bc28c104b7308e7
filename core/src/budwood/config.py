"""From a YAML file and overrides to one frozen, complete configuration, with every error found in one go.

``load`` reads, ``names`` tells which plugins to import, ``resolve`` checks the whole against the schema composed from the
adapter's and the plugins' own models.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from budwood import __version__
from budwood.api import FIRST_PASS, BudwoodError, ConfigError, PluginError
from budwood.config_messages import explain
from budwood.config_model import (
    CheckpointConfig,
    EvaluationConfig,
    RunConfig,
    TrackingConfig,
    compose_model,
    ordered,
    owners,
    schema,
    section_model,
)
from budwood.overrides import Loaded, apply, keyword_overrides, normalise
from budwood.plugins import Activation, check_range, find, installed, snake
from budwood.redact import is_masked, redact, remember
from budwood.yaml_io import child, dump, plain, read

__all__ = [
    "CheckpointConfig",
    "EvaluationConfig",
    "Loaded",
    "Resolved",
    "RunConfig",
    "TrackingConfig",
    "differing",
    "digest",
    "dump",
    "keyword_overrides",
    "load",
    "names",
    "resolve",
    "resolve_sections",
    "schema",
]

MAY_CHANGE = (
    "name",
    "output",
    "processes",
    "evaluation",
    "checkpoint",
    "tracking",
    "trainer.total_timesteps",
    "trainer.total_steps",
    "budget",
)
"""What a resumed run may change: these keys and everything under them."""


@dataclass(frozen=True)
class Resolved:
    """``model`` is frozen and validated; ``data`` is the same as plain values, complete, in the order of the schema.

    A pydantic secret is readable in ``model`` only; in ``data`` it is ``***``.
    """

    model: RunConfig
    data: dict[str, Any]

    def section(self, plugin: str) -> Any:
        """The validated section of one plugin."""
        return getattr(self.model.plugins, plugin)


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Loaded:
    """A YAML file, or a mapping, with ``a.b.c=value`` overrides applied. Plugin names are in snake_case from here on."""
    if isinstance(source, Mapping):
        data, problems = plain(source)
        if problems:
            raise _refused("config", problems, do="Give numbers, text, lists and mappings only:")
        return _noted(apply(normalise(Loaded(data, "config", {})), overrides))
    origin = str(source)
    data, lines = read(_text(Path(source)), origin)
    if data is None:
        raise ConfigError("the file is empty", where=origin, do="A run needs at least trainer and env")
    if not isinstance(data, dict):
        raise ConfigError(
            f"the file holds a {'list' if isinstance(data, list) else 'single value'}, not keys and values",
            where=origin,
            do="A run needs at least trainer and env",
        )
    data.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).stem).strip("-._") or "run")
    return _noted(apply(normalise(Loaded(data, origin, lines)), overrides))


def _noted(loaded: Loaded) -> Loaded:
    """``loaded``, its secrets being known from here on: whatever a library says of them is masked."""
    remember(loaded.data)
    return loaded


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError("there is no such file", where=str(path), do="Check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"byte {error.start} is not UTF-8 text", where=str(path), do="Save the file as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"the file cannot be read: {error.strerror}", where=str(path), do="Check the path and its permissions"
        ) from None


def names(loaded: Loaded) -> tuple[str, tuple[str, ...]]:
    """The adapter and the plugins that a run names, in order. Reads metadata only; every misfit is in one error."""
    problems: list[str] = []
    sections = loaded.data.get("plugins", {})
    if not isinstance(sections, dict):
        problems.append(f"plugins{loaded.place('plugins')}: write plugin names with their options, e.g. name: {{}}")
        sections = {}
    trainer = loaded.data.get("trainer")
    kind = trainer.get("kind") if isinstance(trainer, dict) else None
    if not isinstance(kind, str):
        known = ", ".join(item.name for item in installed() if item.name not in sections)
        problems.append(
            f"trainer.kind{loaded.place('trainer.kind')}: is required, the name of an installed adapter"
            f" (installed plugins: {known or 'none'})"
        )
        kind = ""
    for path, name in [("trainer.kind", kind), *((f"plugins.{name}", name) for name in sections)]:
        try:
            if name:
                check_range(find(name), __version__)
        except PluginError as error:
            what = (
                error.what.replace("no installed plugin", "no installed adapter")
                if path == "trainer.kind"
                else error.what
            )
            who = f" [{error.who}]" if error.who else ""
            problems.append(f"{path}{loaded.place(path)}: {what}. {error.do}{who}")
    if kind and snake(kind) in sections:
        path = f"plugins.{snake(kind)}"
        problems.append(f"{path}{loaded.place(path)}: is the trainer of this run, not a plugin of it")
    if problems:
        raise _refused(loaded.origin, problems)
    return snake(kind), tuple(sections)


def resolve(loaded: Loaded, activation: Activation, *, recorded: bool = False) -> Resolved:
    """Check everything against the composed schema and fill in every default.

    ``recorded``: the configuration is a record to compare with, so its secrets may be masked; one that is to be used must
    have them given again.
    """
    model = compose_model(activation)
    data = dict(loaded.data)
    if isinstance(data.get("trainer"), dict) and isinstance(data["trainer"].get("kind"), str):
        data["trainer"] = {**data["trainer"], "kind": snake(data["trainer"]["kind"])}
    problems = [] if recorded else _masked(data, "", loaded)
    try:
        # JSON mode is what makes strict types right for YAML: a list is a tuple's or a set's only notation.
        model.model_validate_json(json.dumps(data), context=FIRST_PASS)
        checked = model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise _refused(
            loaded.origin, [*problems, *explain(error, model, data, loaded.place, owners(activation))]
        ) from None
    except BudwoodError:
        raise
    except Exception as error:
        raise _culprit(activation, data, error) from error
    if problems:
        raise _refused(loaded.origin, problems)
    remember(_revealed(checked))
    return Resolved(checked, {key: _plain(getattr(checked, key)) for key in ordered(model)})


def resolve_sections(sections: Mapping[str, Any], activation: Activation) -> dict[str, Any]:
    """The validated sections of plugins that run without an adapter, as in a grafted script."""
    loaded = load({"trainer": None, "plugins": sections})
    resolved = resolve(loaded, activation)
    return {active.name: resolved.section(active.name) for active in activation.plugins}


def digest(data: Mapping[str, Any]) -> str:
    """sha256 of what must not change on resume; secrets do not count, the order of plugins does."""
    text = json.dumps(_fixed(data, MAY_CHANGE), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differing(old: Mapping[str, Any], new: Mapping[str, Any], may_change: Sequence[str] = MAY_CHANGE) -> list[str]:
    """The dotted keys that differ between two resolved configurations, apart from those that may; default: on resume."""
    before, after = ({key: json.dumps(value) for key, value in _fixed(data, may_change).items()} for data in (old, new))
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [key for key in changed if not any(other.startswith(f"{key}.") for other in changed)]


def _fixed(data: Mapping[str, Any], may_change: Sequence[str]) -> dict[str, Any]:
    flat = _flat(redact(data), "")
    kept = {key: value for key, value in flat.items() if not any(f"{key}.".startswith(f"{may}.") for may in may_change)}
    return {**kept, "the order of plugins": list(data.get("plugins") or ())}


def _flat(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    return {key: leaf for name, item in value.items() for key, leaf in _flat(item, child(path, name)).items()}


def _masked(value: Any, path: str, loaded: Loaded) -> list[str]:
    """A configuration read back from a run's folder has lost its secrets: they must be given again."""
    if isinstance(value, dict):
        return [line for key, item in value.items() for line in _masked(item, child(path, key), loaded)]
    if isinstance(value, list):
        return [line for index, item in enumerate(value) for line in _masked(item, child(path, index), loaded)]
    if not is_masked(value):
        return []
    return [f"{path}{loaded.place(path)}: this secret was not kept on disk; give it again as {path}=..."]


def _plain(value: Any) -> Any:
    """A validated value as plain data, the same in every process: sets are sorted, secrets hidden."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {(fields[key].alias if key in fields else None) or key: _plain(item) for key, item in value}
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item) for item in value), key=repr)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (str, bool, int, float)) or value is None:
        return value
    return redact(value) if hasattr(value, "get_secret_value") else to_jsonable_python(value)


def _revealed(value: Any) -> Any:
    """A validated value with models as mappings, for what they declare secret under any name."""
    if isinstance(value, BaseModel):
        return {key: _revealed(item) for key, item in value}
    if isinstance(value, Mapping):
        return {str(key): _revealed(item) for key, item in value.items()}
    return [_revealed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _culprit(activation: Activation, data: Mapping[str, Any], error: Exception) -> PluginError:
    """The plugin whose own validator crashed with something that is no validation error."""
    who = activation.adapter.who if activation.adapter else ""
    where = "trainer"
    for active in activation.plugins:
        try:
            section_model(active, activation).model_validate_json(json.dumps(data["plugins"][active.name]))
        except ValidationError:
            continue
        except Exception:  # noqa: BLE001  this is the one
            who, where = active.who, f"plugins.{active.name}"
            break
    return PluginError(
        f"checking its options raised {type(error).__name__}: {error}",
        where=where,
        who=who,
        do="Report this to its author",
    )


def _refused(origin: str, problems: Sequence[str], do: str = "") -> ConfigError:
    several = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    return ConfigError(f"the configuration has {several}", where=origin, do=do, problems=tuple(problems))
