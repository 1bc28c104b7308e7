"""The contract of a plugin, as findings: for ``budwood plugin check NAME`` and for a plugin author's own tests.

assert not [finding for finding in check_plugin("curiosity") if finding.level == "error"]
"""

from __future__ import annotations

import inspect
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ValidationError

from budwood import across, tree
from budwood.api import (
    BudwoodError,
    CompletionReward,
    Config,
    Contributed,
    Evaluator,
    LossTerm,
    Objective,
    PluginError,
    ReportSection,
    RewardCombination,
    RewardTerm,
    Run,
    RunCallback,
    Stateful,
)
from budwood.canary import source_hash
from budwood.plugins import Activation, Active, Installed, PerPlugin, find, kebab, load, snake
from budwood.yaml_io import plain

__all__ = ["Finding", "check_plugin", "source_hash"]

HEAVY = ("torch", "transformers", "trl", "lerobot", "mlflow")
"""What importing a plugin must not import: ``budwood plugins --hooks`` would take seconds."""

COLLECTED: Mapping[str, type] = {
    "reward_terms": RewardTerm,
    "completion_rewards": CompletionReward,
    "loss_terms": LossTerm,
    "evaluators": Evaluator,
    "callbacks": RunCallback,
    "report_sections": ReportSection,
}
CLAIMED: Mapping[str, type] = {"reward_combination": RewardCombination, "objective": Objective}
CALLABLE = ("advantage", "completion_advantage", "rollout", "decoder", "build_env", "build_policy")


@dataclass(frozen=True)
class Finding:
    """``level``: ``error`` breaks the contract, ``warn`` will trouble somebody, ``ok`` is what was seen."""

    level: Literal["ok", "warn", "error"]
    what: str
    do: str = ""


def check_plugin(name: str, section: Mapping[str, Any] | None = None) -> list[Finding]:
    """Everything that can be said of an installed plugin without training.

    ``section``: its part of a YAML, for a plugin whose configuration has no complete defaults or contributes only when
    it is told to.
    """
    try:
        item = find(name)
    except PluginError as error:
        return [_error(error)]
    findings = [*_metadata(item), *_package(item), *_import_cost(item)]
    try:
        activation = Activation([load(item)], None)
    except PluginError as error:
        return [*findings, _error(error)]
    active = activation.plugins[0]
    hooks = sorted(caller.name for caller in activation.manager.get_hookcallers(active.instance) or ())
    if not hooks:
        return [*findings, Finding("error", "it implements no hook", "Mark its methods with budwood.api.hookimpl")]
    findings.append(Finding("ok", f"implements {', '.join(hooks)}"))
    return [*findings, *_configuration(activation, section)]


def _error(error: BudwoodError) -> Finding:
    return Finding("error", f"{error.where}: {error.what}" if error.where else error.what, error.do)


# ---- without importing it ---------------------------------------------------------------------------------------------


def _metadata(item: Installed) -> Iterator[Finding]:
    if item.entry.name != item.name or not item.name.isidentifier():
        yield Finding(
            "error", f"the entry point is called {item.entry.name!r}", f"Use snake_case: {snake(item.name)!r}"
        )
    if kebab(item.distribution) != f"budwood-{kebab(item.name)}":
        yield Finding(
            "warn",
            f"the distribution is called {item.distribution!r}",
            f"A person who lacks it is told: pip install budwood-{kebab(item.name)}",
        )
    if not item.requires:
        yield Finding("error", "it declares no range on budwood", "Add to its dependencies: budwood>=0.1,<0.2")
    elif not re.search(r"<|==|~=", item.requires):
        yield Finding(
            "warn",
            f"its range budwood{item.requires} has no upper end",
            "A minor version of 0.x may change the hooks: add an upper end, such as <0.2",
        )
    about = metadata.metadata(item.distribution)
    if not (about.get("Description") or about.get_payload()):  # type: ignore[attr-defined]
        yield Finding("warn", "its distribution has no README", 'Add readme = "README.md" to pyproject.toml')


def _package(item: Installed) -> Iterator[Finding]:
    package = item.value.partition(":")[0].partition(".")[0]
    spec = util.find_spec(package)
    if spec is not None and not any((Path(f) / "py.typed").exists() for f in spec.submodule_search_locations or ()):
        yield Finding("warn", f"{package} has no py.typed", "Add the empty file: type checkers then read its types")


def _import_cost(item: Installed) -> Iterator[Finding]:
    """Import the module in a process of its own, where a heavy library only notes that somebody wanted it."""
    module = item.value.partition(":")[0]
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, module, *HEAVY],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if wanted := done.stdout.split():
        yield Finding("error", f"importing {module} imports {', '.join(wanted)}", "Import them inside the hooks")


_PROBE = """
import importlib, sys
from importlib.machinery import ModuleSpec

class Probe:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name in sys.argv[2:] else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        print(module.__name__, flush=True)
        raise ImportError(module.__name__)

sys.meta_path.insert(0, Probe())
importlib.import_module(sys.argv[1])
"""


# ---- configuration and contributions ----------------------------------------------------------------------------------


def _configuration(activation: Activation, section: Mapping[str, Any] | None) -> Iterator[Finding]:
    active = activation.plugins[0]
    try:
        model = activation.ask("config_model", active)
    except BudwoodError as error:
        yield _error(error)
        return
    if model is None:
        yield Finding("ok", "has no configuration section")
        yield from _contributions(active, None)
        return
    if not (inspect.isclass(model) and issubclass(model, Config)):
        yield Finding("error", f"config_model gives {model!r}", "Give a subclass of budwood.api.Config")
        return
    yield from _fields(model)
    if {"trainer", "env"} <= model.model_fields.keys():
        yield Finding("ok", "is an adapter: what it can bind depends on the trainer and is not checked here")
        return
    try:
        # As a run does: in JSON mode, where a list is a tuple's only notation.
        validated = model.model_validate_json(json.dumps(plain(section or {})[0]))
    except ValidationError as error:
        places = ((".".join(map(str, problem["loc"])), problem["msg"]) for problem in error.errors())
        reasons = "; ".join(f"{place}: {reason}" if place else reason for place, reason in places)
        yield Finding(
            "error" if section else "warn",
            f"its contributions were not checked, because its section is refused: {reasons}",
            "Give every option a default, or check it with a section: check_plugin(name, section={...})",
        )
        return
    yield from _contributions(active, validated)


def _fields(model: type[BaseModel], inside: str = "") -> Iterator[Finding]:
    """Every option says what it is, in its description or as ``name`` in the docstring of its class."""
    silent = []
    nested: list[Finding] = []
    for name, info in model.model_fields.items():
        models = [kind for kind in _kinds(info.annotation) if issubclass(kind, BaseModel)]
        if not (info.description or f"``{name}``" in (model.__doc__ or "") or models):
            silent.append(f"{inside}{name}")
        nested += [finding for kind in models for finding in _fields(kind, f"{inside}{name}.")]
    if silent:
        yield Finding("warn", f"no description of {', '.join(silent)}", "Field(default, description=...)")
    yield from nested


def _kinds(annotation: Any) -> Iterator[type]:
    """The classes in a type annotation such as ``list[Term] | None``."""
    if inspect.isclass(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _kinds(argument)


def _contributions(active: Active, section: Any) -> Iterator[Finding]:
    """Asks the plugin as a run would, twice: what it gives must be fresh each time, so that states can be moved."""
    first, again = (_Contributed(Activation([Active(active.installed, _fresh(active))], None), section) for _ in "ab")
    for hook in (*COLLECTED, *CLAIMED, *CALLABLE):
        try:
            given = first.ask(hook)
            yield from _checked(hook, given)
            yield from _states(hook, given, again.ask(hook))
            yield from _shared(hook, given)
        except BudwoodError as error:
            yield Finding("error" if error.__cause__ is not None else "warn", f"{hook}: {error.what}", error.do)


class _Contributed:
    """What the hooks of one activation give in an empty run."""

    def __init__(self, activation: Activation, section: Any) -> None:
        self._activation = activation
        self._run = PerPlugin(lambda active: _run(active, section, activation))

    def ask(self, hook: str) -> list[Any]:
        extra: dict[str, Any] = {"history": {}} if hook == "report_sections" else {}
        extra |= {"role": "train"} if hook == "build_env" else {}
        if hook in COLLECTED:
            return [item.value for item in self._activation.collect(hook, run=self._run, **extra)]
        claimed = self._activation.claim(hook, run=self._run, **extra)
        return [] if claimed is None else [claimed.value]


def _fresh(active: Active) -> object:
    """A new object of the plugin, as every run gets; a plugin that is a module is always the same."""
    return type(active.instance)() if not inspect.ismodule(active.instance) else active.instance


def _run(active: Active, section: Any, activation: Activation | None = None) -> Run:
    def components(kind: str) -> list[Contributed[Any]]:
        if activation is None:
            return []
        return activation.collect("components", run=PerPlugin(lambda other: _run(other, None, activation)), kind=kind)

    return Run(
        name=f"check-{active.name}",
        seed=0,
        config={},
        section=section,
        trainer=None,
        env_id=None,
        folder=None,
        device="cpu",
        components=components,
    )


def _checked(hook: str, given: list[Any]) -> Iterator[Finding]:
    expected = {**COLLECTED, **CLAIMED}.get(hook)
    for value in given:
        if expected is not None and not isinstance(value, expected):
            yield Finding("error", f"{hook} gives {value!r}", f"Give {expected.__name__} objects")
        elif hook in CALLABLE and not callable(value):
            yield Finding("error", f"{hook} gives {value!r}, which cannot be called", "See the hook's description")
        else:
            yield Finding("ok", f"{hook}: {getattr(value, 'name', None) or type(value).__name__}")
            yield from _picklable(hook, value)
    names = [value.name for value in given if hasattr(value, "name")]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Finding("error", f"{hook} gives two contributions called {name!r}", "Names are unique within a plugin")


def _picklable(hook: str, value: Any) -> Iterator[Finding]:
    function = getattr(value, "fn", None) or (value if hook in CALLABLE else None)
    if function is None:
        return
    try:
        pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        yield Finding(
            "warn",
            f"{hook}: {function!r} cannot be sent to another process: {error}",
            "Use a module-level function or an object with __call__ instead of a lambda or a closure",
        )


def _states(hook: str, given: list[Any], again: list[Any]) -> Iterator[Finding]:
    """A state taken from one object and put into a fresh one must come back the same, through the checkpoint's format."""
    for one, other in zip(map(_stateful, given), map(_stateful, again), strict=False):
        if one is None or other is None:
            continue
        what = f"{hook}: the state of {type(one).__name__}"
        try:
            before = one.state_dict()
            other.load_state_dict(_copy(before))
            same = _same(before, other.state_dict())
        except Exception as error:  # noqa: BLE001 - whatever the author's code raises is the finding
            if isinstance(one, RunCallback) and type(one).on_run_start is not RunCallback.on_run_start:
                yield Finding("ok", f"{what} is made in on_run_start, so it was not checked")
                continue
            yield Finding(
                "warn",
                f"{what} could not be moved outside a run: {type(error).__name__}: {error}",
                "state_dict and load_state_dict should work on a fresh object",
            )
            continue
        if not same:
            yield Finding("error", f"{what} changes in load_state_dict", "A resumed run would not continue the same")


def _shared(hook: str, given: list[Any]) -> Iterator[Finding]:
    """What remembers something says how that stands in several processes, as those that train it so ask before they begin."""
    if hook not in ("reward_terms", "completion_rewards", "callbacks"):
        return
    for value in given:
        holder = across.memory_of(value)
        if holder is None:
            continue
        said, words = across.said_of(holder), across.words_for(value)
        if said not in words:
            yield Finding(
                "warn" if said is None else "error",
                f"{hook}: {type(holder).__name__} remembers something, and "
                + ("has no across_processes: several processes refuse it" if said is None else f"says {said!r} of it"),
                f"Give its class the attribute across_processes, one of {', '.join(words)}: see budwood.api.Across",
            )


def _stateful(value: Any) -> Stateful | None:
    state = getattr(value, "state", value)
    return state if isinstance(state, Stateful) else None


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    structure, tensors = tree.encode(state)
    return tree.decode(json.loads(json.dumps(structure)), lambda _, name: tensors[name])


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    (structure, tensors), (structure_too, tensors_too) = tree.encode(one), tree.encode(other)
    return structure == structure_too and all(
        np.array_equal(_numbers(value), _numbers(tensors_too[name])) for name, value in tensors.items()
    )


def _numbers(value: Any) -> Any:
    to_numpy: Callable[[], Any] | None = getattr(value, "numpy", None)
    return value if to_numpy is None else to_numpy()
