"""``budwood lcqa``: every module beside this one is a subcommand, imported when it is used; its ``command`` is run."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

import click


class Subcommands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"{__name__}.{cmd_name}").command
        if len(command.params) == len(_without_flags(command)):
            command.params += [
                click.Option(["--json"], is_flag=True, expose_value=False, help="End with one line of JSON."),
                click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error."),
            ]
        return command


def _without_flags(command: click.Command) -> list[click.Parameter]:
    return [parameter for parameter in command.params if "--json" not in parameter.opts]


@click.group(cls=Subcommands)
def command() -> None:
    """Smallest sufficient evidence for questions over long contexts.

    \b
      budwood lcqa pool questions.jsonl --format shipped --out pools.jsonl   candidates, without looking at answers
      budwood lcqa mine questions.jsonl --format shipped --out mined.jsonl   which passages suffice: a training set
      budwood lcqa train mined.jsonl --out head.safetensors                  a picker of nine weights
      budwood lcqa evaluate pools.jsonl --method bm25:5                      baselines, with intervals
    """
