"""plugins, plugin new, plugin check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from budwood.cli.groups import Command, LazyGroup
from budwood.cli.output import Answer, say, table
from budwood.plugins import COMMAND_GROUP, Installed, entry_points, installed, unreadable


@click.command()
@click.option("--hooks", is_flag=True, help="Also import each plugin and list the hooks it implements.")
def plugins(hooks: bool) -> list[dict[str, Any]]:
    """Installed plugins and adapters, from package metadata; nothing of theirs is imported unless --hooks is given.

    \b
      budwood plugins
      budwood plugins --hooks --json
    """
    rows = [_described(item, hooks) for item in installed()]
    if not rows:
        say("No plugin is installed. Plugins are ordinary packages: pip install budwood-NAME")
        return rows
    shown = [{**row, "needs": f"budwood{row['requires']}", "hooks": " ".join(row.get("hooks", ()))} for row in rows]
    table(shown, ["name", "version", "distribution", "needs", "hooks" if hooks else "summary"])
    for row in rows:
        if "error" in row:
            say(f"{row['name']}: {row['error']}")
    for note in _notes():
        say(f"note: {note}")
    return rows


def _described(item: Installed, hooks: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": item.name,
        "version": item.version,
        "distribution": item.distribution,
        "requires": item.requires,
        "summary": item.summary,
    }
    if hooks:
        from budwood.api import PluginError
        from budwood.plugins import Activation, load

        try:
            active = load(item)
            callers = Activation([active], None).manager.get_hookcallers(active.instance) or ()
            row["hooks"] = sorted(caller.name for caller in callers)
        except PluginError as error:
            row |= {"hooks": [], "error": str(error)}
    return row


def _notes() -> list[str]:
    """What cannot be read, and names that two distributions, or a distribution and budwood itself, both want."""
    notes = list(unreadable())
    items = installed()
    for name in sorted({item.name for item in items}):
        owners = [item.who for item in items if item.name == name]
        if len(owners) > 1:
            notes.append(f"{' and '.join(owners)} both provide {name!r}; using it is an error until one is uninstalled")
    from budwood.cli import COMMANDS

    for item in entry_points(COMMAND_GROUP):
        if item.entry.name in COMMANDS:
            notes.append(f"{item.who} offers a command {item.entry.name!r}, which is budwood's own; it is left out")
    return notes


@click.group(
    cls=LazyGroup,
    core={
        "new": Command("budwood.cli.plugin:new", "Write an installable package with a passing test."),
        "check": Command("budwood.cli.plugin:check", "Put an installed plugin to the contract's test."),
    },
)
def plugin() -> None:
    """Start a plugin of your own, or check one.

    \b
      budwood plugin new curiosity && pip install -e budwood-curiosity
      budwood plugin check curiosity
    """


@click.command()
@click.argument("name")
@click.option(
    "--path", type=click.Path(file_okay=False, path_type=Path), help="Folder to write; default: ./budwood-NAME"
)
def new(name: str, path: Path | None) -> dict[str, str]:
    """Write a package that installs, contributes a reward term, and has one passing test. Nothing is overwritten.

    \b
      budwood plugin new curiosity
      budwood plugin new curiosity --path ~/code/curiosity
    """
    from budwood.templates import write_plugin

    folder = write_plugin(name, path)
    say(f"wrote {folder}")
    say(f'next: pip install -e "{folder}[test]" && budwood plugin check {name} && pytest {folder}')
    return {"folder": str(folder)}


@click.command()
@click.argument("name")
def check(name: str) -> Answer:
    """Check an installed plugin: metadata, import cost, hooks, configuration, contributions, state.

    \b
      budwood plugin check curiosity
    """
    from budwood.testing import check_plugin

    findings = check_plugin(name)
    for finding in findings:
        say(f"{finding.level:5}  {finding.what}" + (f"  -> {finding.do}" if finding.do else ""))
    errors = sum(finding.level == "error" for finding in findings)
    warnings = sum(finding.level == "warn" for finding in findings)
    say(f"{name}: errors {errors}, warnings {warnings}")
    data = {"plugin": name, "findings": [{"level": f.level, "what": f.what, "do": f.do} for f in findings]}
    return Answer(data, 1 if errors else 0)
