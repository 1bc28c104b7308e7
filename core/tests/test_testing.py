"""check_plugin finds what breaks the contract, and the plugin that `plugin new` writes has nothing to find."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from budwood import plugins, testing
from budwood.api import StepBatch
from budwood.cli import main
from budwood.plugins import Activation, PerPlugin, find, load
from budwood.templates import write_plugin
from budwood.testing import Finding, _run, check_plugin, source_hash

PRELUDE = """
from pydantic import Field
from budwood.api import Config, Evaluator, RewardTerm, RunCallback, hookimpl

"""


@pytest.fixture
def findings(site: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``findings(source)``: what is found in a plugin ``sample`` whose module has this text after the imports.

    The import in another process is left out: one test below is about it.
    """
    made = 0
    monkeypatch.setattr(testing, "_import_cost", lambda item: [])

    def check(
        source: str, name: str = "sample", distribution: str = "", requires: str = "budwood>=0.1,<0.2", **section: Any
    ) -> list[Finding]:
        nonlocal made
        made += 1
        module = f"sample_{made}"
        site.add(
            distribution or f"budwood-{name}", "1", {name: f"{module}:Plugin"}, {module: PRELUDE + source}, requires
        )
        return check_plugin(name, section or None)

    return check


def levels(found: list[Finding], level: str) -> list[str]:
    return [finding.what for finding in found if finding.level == level]


BARE = """
class Plugin:
    @hookimpl
    def callbacks(self, run):
        return []
"""


def test_a_missing_plugin_is_one_finding(site: Any) -> None:
    (finding,) = check_plugin("nothing")
    assert finding.level == "error"
    assert "no installed plugin is called 'nothing'" in finding.what
    assert "pip install budwood-nothing" in finding.do


@pytest.mark.parametrize(
    ("options", "level", "what"),
    [
        ({"distribution": "sample-plugin"}, "warn", "the distribution is called 'sample-plugin'"),
        ({"requires": ""}, "error", "it declares no range on budwood"),
        ({"requires": "budwood>=0.1"}, "warn", "its range budwood>=0.1 has no upper end"),
        ({"requires": "budwood>=9"}, "error", "plugins.sample: it needs budwood>=9, and this is budwood 0.1.0"),
        ({"name": "Sample-Two"}, "error", "the entry point is called 'Sample-Two'"),
    ],
)
def test_metadata(findings: Any, options: dict[str, str], level: str, what: str) -> None:
    assert what in levels(findings(BARE, **options), level)


@pytest.mark.parametrize(
    ("source", "level", "what"),
    [
        ("1 / 0", "error", "plugins.sample: importing sample_1:Plugin failed: ZeroDivisionError: division by zero"),
        ("class Plugin: pass", "error", "it implements no hook"),
        (
            "class Plugin:\n    @hookimpl\n    def rewards(self): ...",
            "error",
            "plugins.sample: its hooks do not fit: unknown hook 'rewards' in plugin",
        ),
        (
            "class Plugin:\n    @hookimpl\n    def config_model(self): return dict",
            "error",
            "config_model gives <class 'dict'>",
        ),
        (
            "class Plugin:\n    @hookimpl\n    def reward_terms(self, run): return [1]",
            "error",
            "reward_terms gives 1",
        ),
        (
            "class Plugin:\n    @hookimpl\n    def advantage(self, run): return 1",
            "error",
            "advantage gives 1, which cannot be called",
        ),
        (
            "class Plugin:\n    @hookimpl\n    def reward_terms(self, run): return [RewardTerm('a', info_key='a')] * 2",
            "error",
            "reward_terms gives two contributions called 'a'",
        ),
        (
            "class Plugin:\n    @hookimpl\n    def evaluators(self, run): return 1 / 0",
            "error",
            "evaluators: its hook evaluators raised ZeroDivisionError: division by zero",
        ),
    ],
)
def test_what_breaks_the_contract(findings: Any, source: str, level: str, what: str) -> None:
    assert any(found.startswith(what) for found in levels(findings(source), level))


def test_heavy_imports_are_found_without_paying_for_them(site: Any) -> None:
    source = "try:\n    import torch.nn\nexcept ImportError:\n    pass\nimport numpy, mlflow"
    site.add("budwood-sample", "1", {"sample": "heavy_x:Plugin"}, {"heavy_x": source}, "budwood>=0.1,<0.2")
    (finding,) = testing._import_cost(find("sample"))
    assert finding.what == "importing heavy_x imports torch, mlflow"


CONFIGURED = """
class Inner(Config):
    "``height`` is told here."
    depth: int = 1
    width: int = 1
    height: int = 1

class Section(Config):
    needed: int = Field(description="said")
    inner: Inner = Inner()

class Plugin:
    @hookimpl
    def config_model(self):
        return Section

    @hookimpl
    def reward_terms(self, run):
        return [RewardTerm("a", lambda step: step.rewards, weight=run.section.needed)]
"""


def test_configuration_is_documented_and_complete(findings: Any) -> None:
    warnings = levels(findings(CONFIGURED), "warn")
    assert [warning for warning in warnings if "description" in warning] == [
        "no description of inner.depth, inner.width"
    ]
    assert any(warning.endswith("because its section is refused: needed: Field required") for warning in warnings)


def test_contributions_are_checked_with_a_section_of_ones_own(findings: Any) -> None:
    found = findings(CONFIGURED, needed=2)
    assert "reward_terms: a" in levels(found, "ok")
    assert any("cannot be sent to another process" in warning for warning in levels(found, "warn"))
    (error,) = levels(check_plugin("sample", {"needed": "two"}), "error")
    assert error.endswith("because its section is refused: needed: Input should be a valid integer")


STATEFUL = """
import numpy as np

class Follow(RunCallback):
    across_processes = "same"

    def __init__(self):
        self.table = np.arange(3)
        self.seen = 0

    def state_dict(self):
        return {"table": self.table, "seen": self.seen}

    def load_state_dict(self, state):
        self.table = state["table"]
        LOAD

class Plugin:
    @hookimpl
    def callbacks(self, run):
        follow = Follow()
        follow.seen = next(COUNT)
        return follow

from itertools import count
COUNT = count()
"""


@pytest.mark.parametrize(
    ("load", "level", "what"),
    [
        ('self.seen = state["seen"]', "ok", "callbacks: Follow"),
        ("pass", "error", "callbacks: the state of Follow changes in load_state_dict"),
        ("self.table = self.table + 1", "error", "callbacks: the state of Follow changes in load_state_dict"),
        ("1 / 0", "warn", "callbacks: the state of Follow could not be moved outside a run: ZeroDivisionError"),
    ],
)
def test_a_state_must_survive_the_move_to_a_fresh_object(findings: Any, load: str, level: str, what: str) -> None:
    found = findings(STATEFUL.replace("LOAD", load))
    assert any(finding.startswith(what) for finding in levels(found, level))
    assert bool(levels(found, "error")) == (level == "error")


def test_a_state_made_when_the_run_starts_is_left_alone(findings: Any) -> None:
    source = (
        STATEFUL.replace("self.seen = 0", "").replace("follow.seen = next(COUNT)", "")
        + """
Follow.on_run_start = lambda self, control: None
"""
    )
    assert "callbacks: the state of Follow is made in on_run_start, so it was not checked" in levels(
        findings(source), "ok"
    )


def remembering(said: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """A callback and a reward term that remember something: the hook, and the source of the plugin."""
    callback = STATEFUL.replace("LOAD", 'self.seen = state["seen"]').replace('across_processes = "same"', said)
    term = (
        "class Mean:\n    ACROSS\n    def __call__(self, step): return step.rewards\n"
        "    def state_dict(self): return {}\n    def load_state_dict(self, state): pass\n"
        "MEAN = Mean()\n"
        "class Plugin:\n    @hookimpl\n    def reward_terms(self, run): return RewardTerm('mean', MEAN, state=MEAN)"
    ).replace("ACROSS", said)
    return ("callbacks: Follow", callback), ("reward_terms: Mean", term)


@pytest.mark.parametrize(
    ("said", "level", "what"),
    [
        ("pass", "warn", "remembers something, and has no across_processes: several processes refuse it"),
        ('across_processes = "rows"', "error", "remembers something, and says 'rows' of it"),
        ('across_processes = "same"', "ok", ""),
    ],
)
def test_what_remembers_something_says_how_that_stands_in_several_processes(
    findings: Any, said: str, level: str, what: str
) -> None:
    """Of a callback and of a reward term; one that remembers nothing need not say anything."""
    for name, source in remembering(said):
        found = findings(source, name.partition(":")[0])
        told = [finding for finding in levels(found, level) if "remembers something" in finding]
        assert told == ([f"{name} {what}"] if what else []), source
    silent = "class Plugin:\n    @hookimpl\n    def callbacks(self, run): return RunCallback()"
    assert not [finding for finding in levels(findings(silent), "warn") if "remembers" in finding]


def test_a_memory_of_process_0_alone_is_for_callbacks(findings: Any) -> None:
    (_, callback), (_, term) = remembering('across_processes = "first"')
    assert not [finding for finding in levels(findings(callback), "error") if "remembers" in finding]
    found = findings(term, "reward_terms")
    assert levels(found, "error") == ["reward_terms: Mean remembers something, and says 'first' of it"]
    assert any("one of same, environments: see" in finding.do for finding in found)


# ---- plugin new -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["curiosity", "Random-Network"])
def test_a_new_plugin_has_nothing_to_find(name: str, site: Any, tmp_path: Path) -> None:
    folder = write_plugin(name, tmp_path / "new")
    assert not [path for path in folder.rglob("*") if path.is_file() and "{{" in path.read_text()]
    assert not list(folder.rglob("*.tmpl"))
    word = plugins.snake(name)
    sys.path.insert(0, str(folder / "src"))
    try:
        entry = f"budwood_{word}.plugin:{'Curiosity' if word == 'curiosity' else 'RandomNetwork'}"
        site.add(f"budwood-{plugins.kebab(name)}", "0.1.0", {word: entry}, requires="budwood>=0.1,<0.2")
        found = check_plugin(name)
        assert levels(found, "error") == []
        assert levels(found, "ok") == ["implements config_model, reward_terms", "reward_terms: effort"]
        (term,) = Activation([load(find(name))], None).collect("reward_terms", run=PerPlugin(_section_of))
        step = StepBatch()
        step.actions = np.array([[2.0, 0.0], [0.0, 0.0]])
        np.testing.assert_allclose(term.value.weight * term.value.fn(step), [-0.2, 0.0])
    finally:
        sys.path.remove(str(folder / "src"))
        for module in [module for module in sys.modules if module.startswith(f"budwood_{word}")]:
            del sys.modules[module]


def _section_of(active: Any) -> Any:
    return _run(active, active.instance.config_model()())


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    assert main(["plugin", "new", "curiosity", "--path", str(tmp_path / "mine")]) == 2
    assert "this folder exists, and nothing is overwritten" in capsys.readouterr().err
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("3d", "'3d' cannot be the name of a plugin"),
        ("a/b", "'a/b' cannot be the name of a plugin"),
        ("class", "'class' cannot be the name of a plugin"),
        ("", "'' cannot be the name of a plugin"),
        ("budwood-x", "'budwood-x' repeats the prefix"),
    ],
)
def test_names_are_checked(name: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugin", "new", name]) == 2
    assert reason in capsys.readouterr().err


def test_check_fails_on_errors_only(findings: Any, capsys: pytest.CaptureFixture[str]) -> None:
    findings(BARE)
    assert main(["plugin", "check", "sample"]) == 0
    assert capsys.readouterr().out.endswith("sample: errors 0, warnings 2\n")
    findings("class Plugin: pass", name="empty")
    assert main(["plugin", "check", "empty"]) == 1
    assert "error  it implements no hook  -> Mark its methods" in capsys.readouterr().out


def test_a_section_is_read_as_in_a_run(findings: Any) -> None:
    """From YAML a tuple comes as a list."""
    source = """
class Options(Config):
    terms: tuple[str, ...] = Field(description="which")

class Plugin:
    @hookimpl
    def config_model(self):
        return Options

    @hookimpl
    def reward_terms(self, run):
        return [RewardTerm(name, info_key=name) for name in run.section.terms]
"""
    assert levels(findings(source, terms=["speed"]), "error") == []
    assert levels(findings(source, name="other", terms=("speed",)), "error") == []


def test_a_canary_sees_syntax_and_no_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    bodies = {
        "plain": "return x + 1",
        "told": '"""Says more."""\n        return (x +  1)  # and this',
        "other": "return x + 2",
    }
    for name, body in bodies.items():
        (tmp_path / f"canary_{name}.py").write_text(f"class A:\n    def f(self, x):\n        {body}\n")
    plain, told, other = (source_hash(f"canary_{name}:A.f") for name in bodies)
    assert plain == told != other
