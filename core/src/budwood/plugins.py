"""Finding plugins by metadata, importing only those a run names, and calling their hooks one at a time.

Calling one plugin at a time is what makes every contribution, and every error, attributable.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from budwood.api import Contributed

GROUP = "budwood.plugins"
COMMAND_GROUP = "budwood.commands"


def snake(name: str) -> str:
    """The YAML spelling of a name: ``Reward-Shaping`` -> ``reward_shaping``."""
    return re.sub(r"[-.\s]+", "_", name.strip()).lower()


def kebab(name: str) -> str:
    """The distribution spelling of a name: ``reward_shaping`` -> ``reward-shaping``."""
    return snake(name).replace("_", "-")


@dataclass(frozen=True)
class Installed:
    """An entry point and the distribution that owns it, from metadata alone."""

    name: str
    value: str
    distribution: str
    version: str
    requires: str
    """Version range on ``budwood``, empty if the distribution declares none."""
    entry: metadata.EntryPoint = field(repr=False, compare=False)
    summary: str = ""
    """What the distribution says of itself, in one line."""

    @property
    def who(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Active:
    """An imported plugin in one run: ``instance`` is what pluggy calls."""

    installed: Installed
    instance: object

    @property
    def name(self) -> str:
        return self.installed.name

    @property
    def who(self) -> str:
        return self.installed.who


@cache
def _scan() -> tuple[Mapping[str, tuple[Installed, ...]], tuple[str, ...]]:
    """One pass over the metadata of everything installed: group -> entries, and what cannot be read."""
    found: dict[str, dict[tuple[str, str], Installed]] = {GROUP: {}, COMMAND_GROUP: {}}
    broken: list[str] = []
    for dist in metadata.distributions():
        try:
            entries = [entry for entry in dist.entry_points if entry.group in found]
            if not entries:
                continue
            distribution, version, requires = dist.metadata["Name"], dist.version, _range(dist)
            summary = " ".join(dist.metadata.get("Summary", "").split())
            for entry in entries:
                item = Installed(snake(entry.name), entry.value, distribution, version, requires, entry, summary)
                found[entry.group].setdefault((item.name, kebab(distribution)), item)
        except Exception as error:  # noqa: BLE001  somebody's damaged metadata may fail in any way
            folder = getattr(dist, "_path", "a distribution")
            broken.append(f"{folder}: its metadata cannot be read ({type(error).__name__}: {error})")
    return {group: tuple(items[key] for key in sorted(items)) for group, items in found.items()}, tuple(broken)


def entry_points(group: str) -> tuple[Installed, ...]:
    """All entries of ``group``, sorted by name then distribution; nothing is imported."""
    return _scan()[0][group]


def unreadable() -> tuple[str, ...]:
    """Distributions whose metadata cannot be read, one sentence each; they are left out of :func:`installed`."""
    return _scan()[1]


def _range(dist: metadata.Distribution) -> str:
    for line in dist.requires or ():
        match = re.match(r"budwood(?![\w.-])\s*(?:\[[^\]]*\])?\s*\(?([^;)@]*)\)?[^;]*(;.*)?$", line, re.IGNORECASE)
        if match and "extra" not in (match.group(2) or ""):
            return match.group(1).strip()
    return ""


def installed() -> tuple[Installed, ...]:
    """Every installed plugin and adapter. Two distributions may claim one name here; using that name is the error."""
    return entry_points(GROUP)


def find(name: str) -> Installed:
    """The plugin called ``name`` in any spelling, or one clear :class:`PluginError`."""
    from budwood.api import PluginError

    wanted = snake(name)
    matches = [item for item in installed() if item.name == wanted]
    if len(matches) > 1:
        raise PluginError(
            f"the name {wanted!r} is provided by two distributions: {' and '.join(item.who for item in matches)}",
            where=f"plugins.{wanted}",
            do="Uninstall one of them",
        )
    if not matches:
        near = difflib.get_close_matches(wanted, [item.name for item in installed()], n=1)
        usual = f"If it is published under the usual name: pip install budwood-{kebab(wanted)}"
        damaged = f". Not readable: {'; '.join(unreadable())}" if unreadable() else ""
        raise PluginError(
            f"no installed plugin is called {wanted!r}",
            where=f"plugins.{wanted}",
            do=(f"Did you mean {near[0]!r}?" if near else usual) + damaged,  # nobody installs a misspelling
        )
    return matches[0]


def check_range(item: Installed, version: str) -> None:
    """Refuse a plugin written for another version of budwood, from metadata, before importing it."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    from budwood.api import PluginError

    try:
        fits = SpecifierSet(item.requires).contains(version, prereleases=True)
    except InvalidSpecifier:
        raise PluginError(
            f"its metadata declares an unreadable range on budwood: {item.requires!r}",
            where=f"plugins.{item.name}",
            who=item.who,
            do="Report this to its author",
        ) from None
    if not fits:
        raise PluginError(
            f"it needs budwood{item.requires}, and this is budwood {version}",
            where=f"plugins.{item.name}",
            who=item.who,
            do=f"pip install -U {kebab(item.distribution)} budwood",
        )


def load(item: Installed) -> Active:
    """Import one plugin and make its object. Any failure names the plugin."""
    from budwood import __version__
    from budwood.api import PluginError

    check_range(item, __version__)
    try:
        loaded = item.entry.load()
        instance = loaded() if isinstance(loaded, type) else loaded
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"importing {item.value} failed: {type(error).__name__}: {error}",
            where=f"plugins.{item.name}",
            who=item.who,
            do=f"Reinstall it, or run: budwood plugin check {item.name} --debug",
        ) from error
    return Active(item, instance)


class Activation:
    """The plugins of one run in YAML order, the adapter apart, on a plugin manager of their own."""

    def __init__(self, plugins: Sequence[Active], adapter: Active | None) -> None:
        import pluggy

        from budwood.api.hooks import PROJECT, Hooks

        self.plugins = tuple(plugins)
        self.adapter = adapter
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(Hooks)
        for active in self.everyone:
            self._register(active)

    @property
    def everyone(self) -> tuple[Active, ...]:
        return (*((self.adapter,) if self.adapter else ()), *self.plugins)

    def _register(self, active: Active) -> None:
        from pluggy import PluginValidationError

        from budwood.api import PluginError
        from budwood.api.hooks import BUILD

        def refuse(reason: str, do: str) -> PluginError:
            return PluginError(reason, where=f"plugins.{active.name}", who=active.who, do=do)

        try:
            self.manager.register(active.instance, name=active.name)
            self.manager.check_pending()
        except (PluginValidationError, ValueError) as error:
            raise refuse(f"its hooks do not fit: {error}", "Report this to its author") from error
        for caller in self.manager.get_hookcallers(active.instance) or ():
            for impl in caller.get_hookimpls():
                if impl.plugin is not active.instance:
                    continue
                if impl.tryfirst or impl.trylast:
                    raise refuse(
                        f"{caller.name} asks for tryfirst or trylast", "Order is the order of the YAML and nothing else"
                    )
                if impl.hookwrapper:
                    raise refuse(f"{caller.name} is an old-style hookwrapper", "Write @hookimpl(wrapper=True)")
                if impl.wrapper and caller.name not in BUILD:
                    raise refuse(f"{caller.name} is a wrapper", f"Only these hooks may be wrapped: {', '.join(BUILD)}")
                if impl.kwargnames:
                    raise refuse(f"{caller.name} has default arguments", "pluggy passes them in some versions only")

    def _implementation(self, hook: str, active: Active) -> Any | None:
        for impl in getattr(self.manager.hook, hook).get_hookimpls():
            if impl.plugin is active.instance:
                return impl
        return None

    def implements(self, hook: str, active: Active) -> bool:
        return self._implementation(hook, active) is not None

    def _call(self, impl: Any, hook: str, active: Active, arguments: Mapping[str, Any]) -> Any:
        values = {
            name: value.make(active) if isinstance(value, PerPlugin) else value for name, value in arguments.items()
        }
        with _attributed(hook, active):
            return impl.function(*(values[name] for name in impl.argnames))

    def ask(self, hook: str, active: Active, **arguments: Any) -> Any:
        """The answer of one plugin, None if it does not implement the hook."""
        impl = self._implementation(hook, active)
        return None if impl is None or impl.wrapper else self._call(impl, hook, active, arguments)

    def collect(self, hook: str, **arguments: Any) -> list[Contributed[Any]]:
        """Every plugin's contributions in YAML order. A hook may return one value or an iterable of them."""
        from budwood.api import Contributed

        found: list[Contributed[Any]] = []
        for active in self.plugins:
            answer = self.ask(hook, active, **arguments)
            if answer is None:
                continue
            with _attributed(hook, active):
                found.extend(Contributed(value, active.name, active.who) for value in _listed(answer))
        return found

    def claim(self, hook: str, **arguments: Any) -> Contributed[Any] | None:
        """The one plugin's value, None if nobody claims; two claims are an error that names both."""
        from budwood.api import Contributed, PluginError

        found = [
            Contributed(answer, active.name, active.who)
            for active in self.plugins
            if (answer := self.ask(hook, active, **arguments)) is not None
        ]
        if len(found) > 1:
            raise PluginError(
                f"{hook} is claimed by both {found[0].plugin} ({found[0].who}) and {found[1].plugin} ({found[1].who})",
                where="plugins",
                do="Only one plugin may own it: remove one of them from the run",
            )
        return found[0] if found else None

    def build(self, hook: str, fallback: Callable[[], Any], **arguments: Any) -> Any:
        """The one answer (``fallback()`` if no plugin gives one) with every wrapper around it, first-listed outermost."""
        answer = self.claim(hook, **arguments)
        return self.wrap(hook, answer.value if answer is not None else fallback(), **arguments)

    def wrap(self, hook: str, value: Any, **arguments: Any) -> Any:
        """``value`` with every plugin's wrapper of ``hook`` around it, first-listed outermost."""
        for active in reversed(self.wrappers(hook)):
            value = self._wrap(self._implementation(hook, active), hook, active, arguments, value)
        return value

    def wrappers(self, hook: str) -> list[Active]:
        """Plugins that wrap ``hook``, outermost first."""
        return [a for a in self.plugins if (impl := self._implementation(hook, a)) is not None and impl.wrapper]

    def _wrap(self, impl: Any, hook: str, active: Active, arguments: Mapping[str, Any], inner: Any) -> Any:
        from budwood.api import PluginError

        def refuse(reason: str) -> PluginError:
            return PluginError(
                f"its wrapper of {hook} {reason}",
                where=f"plugins.{active.name}",
                who=active.who,
                do="Write: inner = yield; return the changed inner",
            )

        generator = self._call(impl, hook, active, arguments)
        with _attributed(hook, active):
            try:
                next(generator)
            except StopIteration:
                raise refuse("never yields") from None
            try:
                generator.send(inner)
            except StopIteration as stop:
                if stop.value is None:
                    raise refuse("returns nothing") from None
                return stop.value
        raise refuse("yields twice")


@dataclass(frozen=True)
class PerPlugin:
    """An argument that differs from plugin to plugin, such as the run seen with the plugin's own section."""

    make: Callable[[Active], Any]


@contextmanager
def _attributed(hook: str, active: Active) -> Generator[None]:
    """Whatever a plugin's code raises becomes an error that names the plugin."""
    from budwood.api import BudwoodError, PluginError

    try:
        yield
    except BudwoodError as error:
        error.who = error.who or active.who
        raise
    except Exception as error:
        raise PluginError(
            f"its hook {hook} raised {type(error).__name__}: {error}",
            where=f"plugins.{active.name}",
            who=active.who,
            do="Run again with --debug to see where",
        ) from error


def _listed(answer: Any) -> list[Any]:
    several = hasattr(answer, "__iter__") and not isinstance(answer, (Mapping, str, type))
    return list(answer) if several else [answer]


def activate(names: Sequence[str], adapter: str | None) -> Activation:
    """Import exactly these plugins, in this order, and the adapter; a fresh manager and fresh objects every time."""
    from budwood.api import PluginError

    found = [find(name) for name in names]
    owner = find(adapter) if adapter else None
    seen = {owner.name} if owner else set()
    for item in found:
        if item.name in seen:
            reason = "is the trainer of this run, not a plugin of it" if item == owner else "is named twice"
            raise PluginError(f"{item.name!r} {reason}", where=f"plugins.{item.name}", do="Remove it from the plugins")
        seen.add(item.name)
    return Activation([load(item) for item in found], load(owner) if owner else None)
