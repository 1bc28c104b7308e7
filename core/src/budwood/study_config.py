"""The file of a study: what varies, over which seeds, and what is read off the runs. Checked as strictly as a run's."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from budwood import config
from budwood.api import Config, ConfigError
from budwood.config_messages import explain
from budwood.config_model import named
from budwood.overrides import Loaded, apply
from budwood.yaml_io import inline

Name = Annotated[str, AfterValidator(named)]
Key = Annotated[str, Field(min_length=1)]
_NO_SEED = "belongs to the whole study; seeds of the study says it"


class MetricConfig(Config):
    """One number a run, read off what it logged. Either ``take`` or ``reaches`` says which."""

    metric: Key = Field(description="the name under which runs log it")
    take: Literal["last", "best", "mean"] | None = Field(
        default=None, description="which of the logged values; default: last. mean is over all of them"
    )
    reaches: float | None = Field(
        default=None,
        description="instead of a value: how many steps the run took until the metric was at least this (at most this if "
        "better: lower); a run that never got there counts with the budget and is marked as censored",
    )
    of: Key | None = Field(
        default=None,
        description="the metric that counts the steps, logged together with the other one; default: training steps. It is "
        "also the x axis of the learning curve",
    )
    better: Literal["higher", "lower"] = Field(default="higher", description="of the metric as it is logged")

    @property
    def lower_is_better(self) -> bool:
        """Of the number that is read off: the sooner a threshold is reached, the better."""
        return self.reaches is not None or self.better == "lower"


class StudyConfig(Config):
    """A grid of runs, variants x seeds, and the statistics over them."""

    name: Name = Field(default="study", description="its folder below output; default: the name of the file")
    base: str | dict[str, Any] = Field(description="the run that all share: a file, relative to this one, or its keys")
    seeds: Annotated[int, Field(ge=1)] | Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = (
        Field(default=5, description="how many, counted from 0; or a list")
    )
    budget: int | None = Field(
        default=None, gt=0, description="environment steps of every run, those of evaluations too; see budget of a run"
    )
    processes: int | None = Field(default=None, gt=0, description="runs at a time; default: one a core")
    variants: Annotated[dict[Name, dict[str, Any] | None], Field(min_length=1)] = Field(
        description="name: settings of the run, with dots as on the command line; nothing: the base as it is"
    )
    metrics: Annotated[dict[Key, MetricConfig], Field(min_length=1)] = Field(
        default_factory=lambda: {"return": MetricConfig(metric="eval/return_mean", of="eval/env_steps")},
        description="name in the tables: where it is read from",
    )
    main: str | None = Field(default=None, description="the metric of the figures; default: the first")
    pairs: list[Annotated[list[str], Field(min_length=2, max_length=2)]] | None = Field(
        default=None, description="[x, y]: how probable is x better than y? Default: each variant against the first"
    )

    @property
    def seed_list(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def main_metric(self) -> str:
        return self.main or next(iter(self.metrics))

    @property
    def pair_list(self) -> list[tuple[str, str]]:
        first, *others = self.variants
        return [(x, first) for x in others] if self.pairs is None else [(x, y) for x, y in self.pairs]


@dataclass(frozen=True)
class Study:
    """``document``: the study as plain data, base and overrides included, which is a study again. ``runs``: variant -> its
    configuration, seed left open.
    """

    config: StudyConfig
    document: dict[str, Any]
    origin: str
    runs: Mapping[str, Loaded]


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Study:
    """A study's file, or a mapping. An override whose first key is one of the study changes it, any other every run.

    :raises ConfigError: with every problem of the study's own keys.
    """
    ours = [text for text in overrides if _first_key(text) in StudyConfig.model_fields]
    loaded = config.load(source, ours)
    if not loaded.data.get("plugins", True):  # what loading a run's file fills in
        loaded = replace(loaded, data={key: value for key, value in loaded.data.items() if key != "plugins"})
    try:
        checked = StudyConfig.model_validate_json(json.dumps(loaded.data))
    except ValidationError as error:
        raise _refused(loaded, explain(error, StudyConfig, loaded.data, loaded.place, {})) from None
    others = [text for text in overrides if text not in ours]
    problems = [f"{text}: {_NO_SEED}" for text in others if _first_key(text) == "seed"]
    if problems := [*problems, *_misfits(checked, loaded)]:
        raise _refused(loaded, problems)
    base = apply(_base(checked, loaded, source), others)
    runs = {}
    for variant, settings in checked.variants.items():
        fixed = {"name": f"{checked.name}-{variant}"} | ({} if checked.budget is None else {"budget": checked.budget})
        given = {**(settings or {}), **fixed}
        try:
            made = apply(base, [f"{key}={inline(value)}" for key, value in given.items()])
        except ConfigError as error:
            problems += [f"variants.{variant}: {text}" for text in error.problems or (error.what,)]
            continue
        runs[variant] = replace(made, origin=f"variants.{variant} of {loaded.origin}")
    if problems:
        raise _refused(loaded, problems)
    return Study(checked, {**loaded.data, "base": base.data}, loaded.origin, runs)


def _first_key(override: str) -> str:
    return override.partition("=")[0].partition(".")[0].strip()


def _base(checked: StudyConfig, loaded: Loaded, source: str | Path | Mapping[str, Any]) -> Loaded:
    if isinstance(checked.base, str):
        folder = Path() if isinstance(source, Mapping) else Path(source).parent
        run = config.load(folder / checked.base)
        without_seed = {key: value for key, value in run.data.items() if key != "seed"}  # that of the run alone
        return replace(run, data=without_seed, file=run.origin)
    return replace(config.load(checked.base), origin=f"base of {loaded.origin}")


def _misfits(checked: StudyConfig, loaded: Loaded) -> Iterator[str]:
    """What one key says of another: names that must be there, settings that exclude or need each other."""
    if checked.main is not None and checked.main not in checked.metrics:
        yield _unknown("main", checked.main, checked.metrics, loaded)
    for index, pair in enumerate(checked.pairs or ()):
        for variant in pair:
            if variant not in checked.variants:
                yield _unknown(f"pairs[{index}]", variant, checked.variants, loaded)
    if len(set(checked.seed_list)) < len(checked.seed_list):
        yield f"seeds{loaded.place('seeds')}: a seed is listed twice"
    if isinstance(checked.base, dict) and "seed" in checked.base:
        yield f"base.seed{loaded.place('base.seed')}: {_NO_SEED}"
    for variant, settings in checked.variants.items():
        for key in settings or ():
            if key in ("seed", "name", "output", "budget"):
                path = f"variants.{variant}.{key}"
                advice = "put it into base" if key == "output" else f"{'seeds' if key == 'seed' else key} of the study"
                yield f"{path}{loaded.place(path)}: belongs to the whole study; {advice} says it"
    for name, metric in checked.metrics.items():
        path = f"metrics.{name}"
        if metric.reaches is not None and metric.take is not None:
            yield f"{path}{loaded.place(path)}: give take or reaches, not both"
        if metric.reaches is not None and checked.budget is None:
            yield f"{path}{loaded.place(path)}: reaches needs a budget, with which runs count that never get there"


def _unknown(path: str, given: str, known: Mapping[str, Any], loaded: Loaded) -> str:
    near = difflib.get_close_matches(given, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"{path}{loaded.place(path)}: there is no {given!r} ({hint})"


def _refused(loaded: Loaded, problems: Sequence[str]) -> ConfigError:
    several = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    return ConfigError(f"the study has {several}", where=loaded.origin, problems=tuple(problems))


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a study, for editors."""
    body = StudyConfig.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **body, "title": "budwood study"}
