"""explain and schema: what a configuration means, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from budwood.cli.groups import SettingsCommand, settings
from budwood.cli.output import say, table, title


@click.command(cls=SettingsCommand)
@click.argument("config", metavar="FILE")
@click.argument("overrides", metavar="[NAME=VALUE]...", nargs=-1, callback=settings)
def explain(config: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """The resolved configuration of a run, and which contribution of which plugin binds to which seam, in order.

    Nothing is trained. What plugins know to stop the run, such as a folder that is missing, is said at the end, and the
    command fails. Seams have grades: A documented by the trainer, B semi-public, C private and watched by a test.

    \b
      budwood explain hopper.yaml seed=3
    """
    from budwood.compose import KINDS
    from budwood.planning import explain as resolve
    from budwood.redact import redact
    from budwood.yaml_io import dump

    plan = resolve(config, overrides)
    data = redact(plan.data)
    title("configuration")
    say(dump(data).rstrip())
    say()
    title(f"bindings to {plan.capabilities.trainer}")
    rows: list[dict[str, Any]] = [
        {
            "order": binding.order,
            "plugin": binding.plugin,
            "who": binding.who,
            "kind": binding.kind,
            "contribution": binding.name,
            "seam": binding.place,
            "grade": binding.grade,
        }
        for binding in plan.bindings
    ]
    if rows:
        table(
            [{**row, "kind": KINDS[row["kind"]]} for row in rows],
            ["order", "who", "kind", "contribution", "grade", "seam"],
        )
    else:
        say("none: this is the bare trainer")
    plan.preflight()
    return {"config": data, "trainer": plan.capabilities.trainer, "bindings": rows}


@click.command()
@click.argument("names", metavar="[FILE | PLUGIN...]", nargs=-1)
@click.option("--trainer", metavar="KIND", help="The adapter whose trainer and env sections to include.")
@click.option("--study", is_flag=True, help="Of a study's file instead.")
def schema(names: tuple[str, ...], trainer: str | None, study: bool) -> dict[str, Any]:
    """JSON Schema of a run's configuration: of the plugins that FILE names, or of the PLUGINs named here.

    An editor that knows the schema completes keys and marks mistakes.

    \b
      budwood schema hopper.yaml > schema.json
      budwood schema --trainer KIND curiosity > schema.json
    """
    from budwood import config
    from budwood.plugins import activate

    if study:
        return _printed(_study_schema())
    plugins = list(names)
    if len(names) == 1 and Path(names[0]).suffix in (".yaml", ".yml"):
        adapter, found = config.names(config.load(names[0]))
        trainer, plugins = trainer or adapter, list(found)
    return _printed(config.schema(activate(plugins, trainer)))


def _study_schema() -> dict[str, Any]:
    from budwood import study_config

    return study_config.schema()


def _printed(schema: dict[str, Any]) -> dict[str, Any]:
    say(json.dumps(schema, indent=2, ensure_ascii=False))
    return schema
