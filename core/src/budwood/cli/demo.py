"""demo: a plugin shows what it does."""

from __future__ import annotations

from typing import Any

import click

from budwood.cli.groups import Demos


@click.group(cls=Demos, invoke_without_command=True)
@click.pass_context
def demo(ctx: click.Context) -> Any:
    """See a plugin change a trainer's result, in about a minute; without NAME, the first demo installed.

    \b
      budwood demo
      budwood demo NAME --help
    """
    if ctx.invoked_subcommand is not None:
        return None
    group = ctx.command
    assert isinstance(group, Demos)
    names = group.list_commands(ctx)
    if not names:
        from budwood.api import PluginError

        raise PluginError(
            "no installed plugin ships a demo",
            where="budwood demo",
            do="Install one: pip install budwood-NAME; `budwood plugins` lists what is installed",
        )
    return group.main([names[0]], prog_name="budwood demo", standalone_mode=False, obj=ctx.obj)
