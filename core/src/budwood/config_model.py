"""The schema of a run: the core's own sections, the adapter's, and one field a plugin, as one pydantic model."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, create_model

from budwood.api import Config, PluginError
from budwood.folder import default_output
from budwood.plugins import Activation, Active


def named(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError("a name starts with a letter or digit and goes on with letters, digits, '.', '_' and '-'")
    return value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|(cuda|mps|xpu)(:\d+)?", value):
        raise ValueError("expected auto, cpu, cuda, cuda:N, mps or xpu")
    return value


class EvaluationConfig(Config):
    """Episodes with the current policy on environments of their own."""

    every: int | None = Field(
        default=20_000, gt=0, description="training steps between evaluations; null: at the end only"
    )
    episodes: int = Field(default=10, ge=0, description="episodes of one evaluation; 0: never evaluate")
    seed: int = Field(default=10_000, ge=0, description="seed of the evaluation environments")


class CheckpointConfig(Config):
    """The last checkpoint is always written."""

    every: int | None = Field(
        default=50_000, gt=0, description="training steps between checkpoints; null: at the end only"
    )
    keep: int = Field(default=3, gt=0, description="how many checkpoints stay on disk")
    replay_buffer: bool = Field(default=True, description="keep the replay buffer, without which a resume is not exact")


class TrackingConfig(Config):
    """MLflow."""

    enabled: bool = True
    experiment: str = Field(default="budwood", min_length=1)
    uri: str | None = Field(
        default=None, description="tracking server; default: MLFLOW_TRACKING_URI, else a file in output"
    )
    tags: dict[str, str] = Field(default_factory=dict)
    artifact_megabytes: int | None = Field(
        default=100,
        ge=0,
        description="a report, checkpoint or export larger than this stays in the run's folder alone; null: none does",
    )


class RunConfig(Config):
    """Configuration of one run. An adapter says what goes under trainer and env, each plugin what goes under its name."""

    name: Annotated[str, AfterValidator(named)] = Field(default="run", description="default: the name of the file")
    seed: int = Field(default=0, ge=0, lt=2**32)
    processes: int | None = Field(
        default=None, gt=0, description="how many processes train the run together; null: as many as were launched"
    )
    trainer: Any = Field(description="kind: the name of an installed adapter; the rest is that adapter's")
    env: Any = None
    plugins: Any = Field(default_factory=dict, description="name: options, in the order of activation")
    budget: int | None = Field(
        default=None,
        gt=0,
        description="environment steps, those of evaluations too, at which training ends if it has not ended before",
    )
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    output: str = Field(
        default_factory=lambda: str(default_output()),
        min_length=1,
        description="folder of all runs; default: BUDWOOD_OUTPUT, else runs",
    )
    init_from: str | None = Field(default=None, description="a run whose policy this one starts from")
    device: Annotated[str, AfterValidator(_device)] = "auto"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"


def compose_model(activation: Activation) -> type[RunConfig]:
    """One model: the core's sections, the adapter's own, and one field a plugin under ``plugins``."""
    fields: dict[str, Any] = {active.name: (section_model(active, activation), ...) for active in activation.plugins}
    sections = create_model("Plugins", __base__=Config, __doc__="Options by plugin.", **fields)
    bases: Any = RunConfig
    if activation.adapter is not None:
        bases = (_adapter_model(activation.adapter, activation), RunConfig)
    made: type[RunConfig] = create_model(
        "Run", __base__=bases, __doc__=RunConfig.__doc__, plugins=(sections, ... if fields else sections())
    )
    return made


def section_model(active: Active, activation: Activation) -> type[Config]:
    """What a plugin says of its own options; a model without fields if it says nothing."""
    answer = activation.ask("config_model", active)
    if answer is None:
        return create_model("NoOptions", __base__=Config, __doc__="This plugin has no options.")
    if not (isinstance(answer, type) and issubclass(answer, Config)):
        raise PluginError(
            f"its hook config_model returned {answer!r}, expected a subclass of budwood.api.Config",
            where=f"plugins.{active.name}",
            who=active.who,
            do="Report this to its author",
        )
    return answer


def _adapter_model(adapter: Active, activation: Activation) -> type[Config]:
    if not activation.implements("build_trainer", adapter):
        raise PluginError(
            f"{adapter.name!r} builds no trainer, so it is no adapter",
            where="trainer.kind",
            who=adapter.who,
            do="Name it under plugins, and an adapter as trainer.kind",
        )
    model = section_model(adapter, activation)
    taken = sorted((set(RunConfig.model_fields) - {"trainer", "env"}) & set(model.model_fields))
    if taken or "trainer" not in model.model_fields:
        reason = f"describes {', '.join(taken)}, which budwood owns" if taken else "has no field trainer"
        raise PluginError(
            f"its config_model {reason}", where="trainer.kind", who=adapter.who, do="Report this to its author"
        )
    return model


def owners(activation: Activation) -> dict[str, str]:
    """Dotted prefix -> who owns that part of the configuration."""
    found = {f"plugins.{active.name}": active.who for active in activation.plugins}
    adapter = activation.adapter
    if adapter is not None:
        model = section_model(adapter, activation)
        found.update(dict.fromkeys(model.model_fields, adapter.who))
    return found


def ordered(model: type[BaseModel]) -> list[str]:
    """Top-level keys in the order in which a person reads them; an adapter's further sections before the plugins."""
    core = list(RunConfig.model_fields)
    added = [name for name in model.model_fields if name not in core]
    split = core.index("plugins")
    return [*core[:split], *added, *core[split:]]


def schema(activation: Activation) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a run with these plugins, for editors. A plugin may be named with or without options."""
    made = compose_model(activation)
    body = made.model_json_schema()
    properties = body["properties"]
    sections = body["$defs"][properties["plugins"]["$ref"].rpartition("/")[2]]
    sections.pop("required", None)
    for active in activation.plugins:
        options = sections["properties"][active.name]
        sections["properties"][active.name] = {
            "anyOf": [options, {"type": "null"}],
            "title": active.name,
            "description": f"options of {active.who}",
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **body,
        "title": "budwood run",
        "required": [key for key in body.get("required", ()) if key != "plugins"],
        "properties": {key: properties[key] for key in ordered(made)},
    }
