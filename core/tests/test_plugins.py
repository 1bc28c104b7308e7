"""Discovery by metadata, activation in the order of the YAML, and errors that name their plugin."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from budwood import plugins
from budwood.api import PluginError, hookimpl
from budwood.plugins import Activation, PerPlugin, activate, find, installed

GOOD = """
from budwood.api import hookimpl

class Plugin:
    @hookimpl
    def components(self, kind):
        return {kind: __name__}
"""


def message(call: Any) -> str:
    with pytest.raises(PluginError) as caught:
        call()
    return str(caught.value)


def test_discovery_imports_nothing(site: Any) -> None:
    site.add("Budwood-Flow", "0.3.0", {"Flow-RL": "flow_x:Plugin"}, {"flow_x": "raise RuntimeError"}, "budwood>=0.1,<1")
    (item,) = installed()
    assert (item.name, item.who, item.value, item.requires) == (
        "flow_rl",
        "Budwood-Flow 0.3.0",
        "flow_x:Plugin",
        ">=0.1,<1",
    )
    assert find("flow-rl") is find("Flow_RL") is item
    assert "flow_x" not in sys.modules


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("budwood", ""),
        ("budwood (>=0.1)", ">=0.1"),
        ("budwood[docs]>=0.1,<0.2", ">=0.1,<0.2"),
        ('Budwood>=0.1; python_version >= "3.12"', ">=0.1"),
        ("budwood-sb3[mujoco]>=9", ""),
        ("budwood_sb3>=9", ""),
        ("budwood.sb3>=9", ""),
        ("budwood @ file:///somewhere", ""),
        ("budwood>=9; extra == 'old'", ""),
    ],
)
def test_range_on_budwood_is_read_from_metadata(site: Any, line: str, expected: str) -> None:
    site.add("budwood-flow", "1.0", {"flow": "flow_x:Plugin"}, requires=line)
    assert find("flow").requires == expected


def test_unknown_plugin(site: Any) -> None:
    site.add("budwood-reward-shaping", "1.0", {"reward_shaping": "shaping_x:Plugin"})
    assert message(lambda: find("reward-shapign")) == (
        "plugins.reward_shapign: no installed plugin is called 'reward_shapign'. Did you mean 'reward_shaping'?"
    )


def test_two_distributions_with_one_name_matter_only_when_it_is_used(site: Any) -> None:
    site.add("budwood-flow", "1.0", {"flow": "flow_x:Plugin"})
    site.add("other-flow", "2.0", {"Flow": "flow_y:Plugin", "calm": "calm_x:Plugin"}, {"calm_x": GOOD})
    assert [item.name for item in installed()] == ["calm", "flow", "flow"]
    assert activate(["calm"], None).plugins[0].who == "other-flow 2.0"
    assert message(lambda: find("flow")) == (
        "plugins.flow: the name 'flow' is provided by two distributions: budwood-flow 1.0 and other-flow 2.0. "
        "Uninstall one of them."
    )


@pytest.mark.parametrize(
    ("requires", "expected"),
    [
        (
            "budwood>=9",
            "plugins.flow: it needs budwood>=9, and this is budwood 0.1.0. Asked for by budwood-flow 1.0. "
            "pip install -U budwood-flow budwood.",
        ),
        (
            "budwood>=oops",
            "plugins.flow: its metadata declares an unreadable range on budwood: '>=oops'. "
            "Asked for by budwood-flow 1.0. Report this to its author.",
        ),
    ],
)
def test_api_range_is_refused_before_import(
    site: Any, monkeypatch: pytest.MonkeyPatch, requires: str, expected: str
) -> None:
    monkeypatch.setattr("budwood.__version__", "0.1.0")
    site.add("budwood-flow", "1.0", {"flow": "flow_x:Plugin"}, {"flow_x": GOOD}, requires)
    assert message(lambda: activate(["flow"], None)) == expected
    assert "flow_x" not in sys.modules


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no GPU')", "RuntimeError: no GPU"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("Plugin: type", "AttributeError: module 'flow_x' has no attribute 'Plugin'"),
        ("class Plugin:\n    def __init__(self, a): ...", None),
    ],
)
def test_a_plugin_that_raises_at_import_names_itself(site: Any, source: str, reason: str | None) -> None:
    site.add("budwood-flow", "1.0", {"flow": "flow_x:Plugin"}, {"flow_x": source})
    site.add("budwood-calm", "1.0", {"calm": "calm_x:Plugin"}, {"calm_x": GOOD})
    text = message(lambda: activate(["calm", "flow"], None))
    assert text.startswith(f"plugins.flow: importing flow_x:Plugin failed: {reason or 'TypeError: '}")
    assert text.endswith("Asked for by budwood-flow 1.0. Reinstall it, or run: budwood plugin check flow --debug.")
    assert [item.name for item in installed()] == ["calm", "flow"]
    assert activate(["calm"], None).plugins[0].name == "calm"


def test_damaged_metadata_is_named_and_stops_nobody_else(site: Any) -> None:
    site.add("budwood-calm", "1.0", {"calm": "calm_x:Plugin"})
    site.add("budwood-flow", "1.0", {"flow": "flow_x:Plugin"})
    (site.folder / "budwood_flow-1.0.dist-info" / "METADATA").write_bytes(b"Name: \xff\xfe\nVersion: 1.0\n")
    plugins._scan.cache_clear()
    assert [item.name for item in installed()] == ["calm"]
    (sentence,) = plugins.unreadable()
    assert "budwood_flow-1.0.dist-info: its metadata cannot be read (UnicodeDecodeError" in sentence
    assert sentence in message(lambda: find("flow"))


def test_activation_order_and_a_fresh_manager_every_time(site: Any) -> None:
    for name in ("one", "two", "three"):
        site.add(f"budwood-{name}", "1.0", {name: f"{name}_x:Plugin"}, {f"{name}_x": GOOD})
    first, second = activate(["three", "one"], "two"), activate(["one"], None)
    assert [active.name for active in first.plugins] == ["three", "one"]
    assert [active.name for active in first.everyone] == ["two", "three", "one"]
    assert [(item.plugin, item.value) for item in first.collect("components", kind="k")] == [
        ("three", {"k": "three_x"}),
        ("one", {"k": "one_x"}),
    ]
    assert [item.who for item in second.collect("components", kind="k")] == ["budwood-one 1.0"]
    assert first.manager is not second.manager
    assert first.plugins[1].instance is not second.plugins[0].instance


@pytest.mark.parametrize(
    ("names", "adapter", "expected"),
    [
        (["one", "One"], None, "plugins.one: 'one' is named twice. Remove it from the plugins."),
        (
            ["one"],
            "one",
            "plugins.one: 'one' is the trainer of this run, not a plugin of it. Remove it from the plugins.",
        ),
    ],
)
def test_a_plugin_is_activated_once(site: Any, names: list[str], adapter: str | None, expected: str) -> None:
    site.add("budwood-one", "1.0", {"one": "one_x:Plugin"}, {"one_x": GOOD})
    assert message(lambda: activate(names, adapter)) == expected


class First:
    @hookimpl(tryfirst=True)
    def reward_terms(self, run: Any) -> Any: ...


class Last:
    @hookimpl(trylast=True)
    def reward_terms(self, run: Any) -> Any: ...


class OldWrapper:
    @hookimpl(hookwrapper=True)
    def build_env(self, run: Any, role: str) -> Any:
        yield


class WrapsCollect:
    @hookimpl(wrapper=True)
    def reward_terms(self, run: Any) -> Any:
        return (yield)


class WrapsGraft:
    @hookimpl(wrapper=True)
    def build_graft(self, target: Any) -> Any:
        return (yield)


class Defaults:
    @hookimpl
    def reward_terms(self, run: Any = None) -> Any: ...


class UnknownHook:
    @hookimpl
    def reward_term(self, run: Any) -> Any: ...


class UnknownArgument:
    @hookimpl
    def reward_terms(self, rnu: Any) -> Any: ...


@pytest.mark.parametrize(
    ("plugin", "expected"),
    [
        (First, "reward_terms asks for tryfirst or trylast"),
        (Last, "reward_terms asks for tryfirst or trylast"),
        (OldWrapper, "build_env is an old-style hookwrapper"),
        (WrapsCollect, "reward_terms is a wrapper"),
        (WrapsGraft, "build_graft is a wrapper"),
        (Defaults, "reward_terms has default arguments"),
        (UnknownHook, "its hooks do not fit: unknown hook 'reward_term'"),
        (UnknownArgument, "its hooks do not fit: Plugin 'flow'"),
    ],
)
def test_hooks_that_would_be_misunderstood_are_refused(in_memory: Any, plugin: type, expected: str) -> None:
    text = message(lambda: Activation([in_memory("flow", plugin())], None))
    assert text.startswith(f"plugins.flow: {expected}")
    assert "Asked for by budwood-flow 1.0." in text


class Wraps:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    @hookimpl(wrapper=True)
    def build_env(self, run: Any, role: str) -> Any:
        inner = yield
        return f"{self.mark}({inner})"


class Builds:
    @hookimpl
    def build_env(self, run: Any, role: str) -> Any:
        return f"{run}:{role}"


def test_build_wrappers_nest_first_listed_outermost(in_memory: Any) -> None:
    active = [in_memory("a", Wraps("A")), in_memory("b", Builds()), in_memory("c", Wraps("C"))]
    run = PerPlugin(lambda active: active.name)
    assert Activation(active, None).build("build_env", lambda: "default", run=run, role="train") == "A(C(b:train))"
    assert Activation(active[::2], None).build("build_env", lambda: "default", run=run, role="eval") == "A(C(default))"
    assert [item.name for item in Activation(active, None).wrappers("build_env")] == ["a", "c"]


class WrapsBadly:
    def __init__(self, how: str) -> None:
        self.how = how

    @hookimpl(wrapper=True)
    def build_env(self, run: Any, role: str) -> Any:
        if self.how == "never yields":
            return
        if self.how == "raises before":
            raise KeyError("before")
        inner = yield
        if self.how == "raises after":
            raise KeyError("after")
        if self.how == "yields twice":
            yield inner
        if self.how != "returns nothing":
            return inner


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("never yields", "its wrapper of build_env never yields"),
        ("yields twice", "its wrapper of build_env yields twice"),
        ("returns nothing", "its wrapper of build_env returns nothing"),
        ("raises before", "its hook build_env raised KeyError: 'before'"),
        ("raises after", "its hook build_env raised KeyError: 'after'"),
    ],
)
def test_a_broken_wrapper_names_its_plugin(in_memory: Any, how: str, expected: str) -> None:
    activation = Activation([in_memory("a", Wraps("A")), in_memory("flow", WrapsBadly(how))], None)
    text = message(lambda: activation.build("build_env", lambda: "default", run=None, role="train"))
    assert text.startswith(f"plugins.flow: {expected}. Asked for by budwood-flow 1.0.")


class Claims:
    def __init__(self, value: Any) -> None:
        self.value = value

    @hookimpl
    def advantage(self, run: Any) -> Any:
        return self.value


def test_claims_by_two_name_both(in_memory: Any) -> None:
    some = [in_memory("a", Claims(None)), in_memory("b", Claims("mine"))]
    claimed = Activation(some, None).claim("advantage", run=None)
    assert claimed is not None
    assert (claimed.value, claimed.plugin, claimed.who) == ("mine", "b", "budwood-b 1.0")
    both = Activation([*some, in_memory("c_d", Claims("me too"), "2.0")], None)
    assert message(lambda: both.claim("advantage", run=None)) == (
        "plugins: advantage is claimed by both b (budwood-b 1.0) and c_d (budwood-c-d 2.0). "
        "Only one plugin may own it: remove one of them from the run."
    )


class Yields:
    @hookimpl
    def evaluators(self, run: Any) -> Any:
        yield "one"
        raise ValueError("later")


class Raises:
    @hookimpl
    def evaluators(self, run: Any) -> Any:
        raise ZeroDivisionError("now")


class Refuses:
    @hookimpl
    def evaluators(self, run: Any) -> Any:
        raise PluginError("the file is gone", where="plugins.flow.file")


@pytest.mark.parametrize(
    ("plugin", "expected"),
    [
        (
            Yields,
            "plugins.flow: its hook evaluators raised ValueError: later. Asked for by budwood-flow 1.0. "
            "Run again with --debug to see where.",
        ),
        (
            Raises,
            "plugins.flow: its hook evaluators raised ZeroDivisionError: now. Asked for by budwood-flow 1.0. "
            "Run again with --debug to see where.",
        ),
        (Refuses, "plugins.flow.file: the file is gone. Asked for by budwood-flow 1.0."),
    ],
)
def test_whatever_a_hook_raises_is_attributed(in_memory: Any, plugin: type, expected: str) -> None:
    activation = Activation([in_memory("flow", plugin())], None)
    assert message(lambda: activation.collect("evaluators", run=None)) == expected


class Answers:
    def __init__(self, value: Any) -> None:
        self.value = value

    @hookimpl
    def config_model(self) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("answer", "values"),
    [
        (None, []),
        ([], []),
        ([1, 2], [1, 2]),
        ((n for n in (1, 2)), [1, 2]),
        ({"a": 1}, [{"a": 1}]),
        ("text", ["text"]),
        (list, [list]),
        (7, [7]),
    ],
)
def test_collect_takes_one_value_or_several(in_memory: Any, answer: Any, values: list[Any]) -> None:
    found = Activation([in_memory("flow", Answers(answer))], None).collect("config_model")
    assert [item.value for item in found] == values
