"""``budwood flow-rl``: every module beside this one is a subcommand, imported when it is used; its ``command`` is run."""

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
        if not any("--json" in parameter.opts for parameter in command.params):
            command.params += [
                click.Option(["--json"], is_flag=True, expose_value=False, help="End with one line of JSON."),
                click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error."),
            ]
        return command


@click.group(cls=Subcommands)
def command() -> None:
    """Flow policies: demonstrations, pre-training, evaluation. Fine-tuning is budwood run, and export the way back.

    \b
      budwood flow-rl record last --transitions 60_000 --out hopper.safetensors     of a policy that SB3 trained
      budwood flow-rl pretrain hopper.safetensors --out flow                        clone it into a flow
      budwood flow-rl evaluate flow                                                 its return without noise
      budwood flow-rl export last --out better                                      a fine-tuned run's flow
    """
