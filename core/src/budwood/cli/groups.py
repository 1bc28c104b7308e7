"""Groups whose commands are imported only when they are used, and the commands that plugins add to them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any

import click

from budwood.plugins import COMMAND_GROUP, Installed, entry_points, snake

DEMO = "demo."


@dataclass(frozen=True)
class Command:
    """A core command: where it is, as ``module:attribute``, and its line in the list."""

    target: str
    help: str


@dataclass
class Invocation:
    """What is known of the command line being run; ``who`` is the plugin whose command runs, if one does."""

    who: str = ""


FLAGS = (
    click.Option(["--json"], is_flag=True, expose_value=False, help="End with one line of JSON on standard output."),
    click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error."),
)
"""Understood everywhere; :func:`budwood.cli.main` looks for them itself, so that they also hold for bad usage."""


class LazyGroup(click.Group):
    """``core`` commands by name, and what ``added`` finds in the metadata of plugins."""

    def __init__(self, *args: Any, core: Mapping[str, Command] | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("no_args_is_help", False)
        super().__init__(*args, **kwargs)
        self.core = dict(core or {})
        self.params += FLAGS

    def added(self) -> dict[str, list[Installed]]:
        """Commands of plugins: name -> everyone who offers it."""
        return {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.core, *(name for name, items in self.added().items() if not self.problem(name, items))]

    def problem(self, name: str, items: list[Installed]) -> str:
        """Why the command ``name`` of these plugins cannot be offered, '' if it can."""
        owners = " and ".join(item.who for item in items)
        if name in self.core:
            return f"{owners} offers a command {name!r}, which is budwood's own"
        if len(items) > 1:
            return f"{owners} both offer a command {name!r}: uninstall one of them"
        return ""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            near = difflib.get_close_matches(args[0], known, n=1)
            raise click.UsageError(
                f"no command {args[0]!r}" + (f"; did you mean {near[0]!r}?" if near else f" among {', '.join(known)}"),
                ctx,
            )
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in self.core:
            module, _, attribute = self.core[name].target.partition(":")
            return _with_flags(getattr(import_module(module), attribute))
        items = self.added().get(name, [])
        if not items:
            return None
        if problem := self.problem(name, items):
            raise click.UsageError(problem, ctx)
        ctx.ensure_object(Invocation).who = items[0].who
        return _with_flags(load(items[0]))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections = {"Commands": [(name, command.help) for name, command in self.core.items()]}
        added = self.added()
        sections["Commands of plugins"] = [
            (name, f"from {items[0].who}") for name, items in added.items() if not self.problem(name, items)
        ]
        sections["Not available"] = [
            (name, problem) for name, items in added.items() if (problem := self.problem(name, items))
        ]
        for heading, rows in sections.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


class Root(LazyGroup):
    """All commands, with those of the entry-point group ``budwood.commands``."""

    def added(self) -> dict[str, list[Installed]]:
        return _by_name(
            (item.entry.name, item) for item in entry_points(COMMAND_GROUP) if not item.entry.name.startswith(DEMO)
        )


class Demos(LazyGroup):
    """The entries called ``demo.<plugin>`` of the same group, in any spelling of the plugin's name."""

    def added(self) -> dict[str, list[Installed]]:
        named = ((item.entry.name.removeprefix(DEMO), item) for item in entry_points(COMMAND_GROUP))
        return _by_name((snake(name), item) for name, item in named if name != item.entry.name)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return super().get_command(ctx, snake(name))


def _by_name(items: Iterable[tuple[str, Installed]]) -> dict[str, list[Installed]]:
    found: dict[str, list[Installed]] = {}
    for name, item in items:
        found.setdefault(name, []).append(item)
    return found


def load(item: Installed) -> click.Command:
    """Import a plugin's command. Any failure names the plugin."""
    from budwood import __version__
    from budwood.api import PluginError
    from budwood.plugins import check_range

    check_range(item, __version__)
    where = f"command {item.entry.name!r}"
    try:
        command = item.entry.load()
    except Exception as error:
        raise PluginError(
            f"importing {item.value} failed: {type(error).__name__}: {error}",
            where=where,
            who=item.who,
            do="Reinstall it, or run the same command with --debug",
        ) from error
    if not isinstance(command, click.Command):
        raise PluginError(
            f"{item.value} is no click command", where=where, who=item.who, do="Report this to its author"
        )
    return command


def _with_flags(command: click.Command) -> click.Command:
    """``command``, and the commands of an ordinary group, with the flags that are understood everywhere."""
    for part in getattr(command, "commands", {}).values():
        _with_flags(part)
    taken = {option for param in command.params for option in param.opts}
    command.params += [flag for flag in FLAGS if not taken.intersection(flag.opts)]
    return command


class SettingsCommand(click.Command):
    """A command that ends in ``a.b=value`` settings and explains the usual mistakes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(f"no option {error.option_name}; {_meant(error.option_name, given)}", ctx) from None


def settings(ctx: click.Context, _: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    """Callback of the trailing argument: every word must be a setting."""
    for word, following in pairwise((*words, "")):
        if word.find("=") < 1:
            example = f"{word}={following}" if following and "=" not in following else f"{word}=VALUE"
            raise click.UsageError(f"{word!r} is no setting; a setting is written {example}", ctx)
    return words


def _meant(option: str, given: list[str]) -> str:
    """``--seed 3`` and ``--seed=3`` -> how to say it."""
    name = option.lstrip("-").replace("-", "_")
    value = "VALUE"
    for word, following in pairwise((*given, "")):
        if word.startswith(f"{option}="):
            value = word.partition("=")[2]
        elif word == option and following and not following.startswith("-") and "=" not in following:
            value = following
    return f"a setting of the run is written without dashes: {name}={value}"
