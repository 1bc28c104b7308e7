"""The shape of the repository: what lies where, and who may import whom. Read from files; nothing is imported."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "core"
ADAPTERS = sorted(path.parent for path in ROOT.glob("adapters/*/pyproject.toml"))
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
MEMBERS = [CORE, *ADAPTERS, *PLUGINS]
LIBRARIES = [ROOT / "adapters" / "models"]
"""What several plugins share: it binds to no trainer, so it is no plugin, and brings a command only."""
STUDIES = sorted(ROOT.glob("configs/studies/*.yaml"))
CONFIGS = sorted(set(ROOT.glob("configs/*/*.yaml")) - set(STUDIES))

FOREIGN = {
    *("stable_baselines3", "sb3_contrib", "trl", "lerobot", "transformers", "accelerate"),
    *("gymnasium", "mujoco", "envpool", "isaaclab"),
}
"""Libraries of trainers and of their environments: core imports none."""
METHODS = {
    *("sb3", "trl", "lerobot", "isaac", "mujoco", "ppo", "a2c", "sac", "td3", "ddpg", "dqn", "grpo", "morse"),
    *("reward_shaping", "flow_rl", "vla_ppo", "speculative_decoding", "lcqa_selector", "hierarchical_memory"),
    *("risk_search", "expert_iteration", "scheduling"),
}
"""Names of trainers and methods: no code of core acts on one."""
NAMED = {"grafting.py": {"sb3"}, "machine.py": {"mujoco", "sb3"}, "testing.py": {"lerobot", "trl"}}
"""Except in these: an example in a message, a library that a machine may lack, imports that a plugin should avoid."""


def name_of(member: Path) -> str:
    return str(member.relative_to(ROOT))


def project(member: Path) -> dict:
    return tomllib.loads((member / "pyproject.toml").read_text())["project"]


def package(member: Path) -> Path:
    return next(path for path in (member / "src").iterdir() if path.name.startswith("budwood"))


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every dotted name that a file imports anywhere, functions included: ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def ours(path: Path) -> Iterator[tuple[str, int]]:
    return ((name, line) for name, line in imports(path) if name.split(".")[0].startswith("budwood"))


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def violations(folder: Path, *allowed: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(folder)
        for name, line in ours(path)
        if not within(name, *allowed)
    ]


# ---- what lies where -------------------------------------------------------------------------------------------------


def test_top_level_is_as_designed():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    top = {path.split("/")[0] for path in listed if not path.startswith(".")}
    folders = {"core", "plugins", "adapters", "configs", "tests", "docs"}
    assert top == folders | {"pyproject.toml", "README.md", "LICENSE"}


@pytest.mark.parametrize("member", MEMBERS, ids=name_of)
def test_member_is_complete(member):
    facts = project(member)
    assert facts["name"] == "budwood" or facts["name"] == f"budwood-{member.name.replace('_', '-')}"
    assert package(member).name == facts["name"].replace("-", "_")
    assert (package(member) / "py.typed").exists()
    assert len((member / "README.md").read_text().splitlines()) > 5, (
        "a README says what the member is and how to use it"
    )
    assert list((member / "tests").glob("test_*.py"))
    assert not list((member / "tests").rglob("__init__.py")), "test folders are not packages"
    assert facts["license"] == "Apache-2.0"
    assert facts["requires-python"].startswith(">=3.12")


@pytest.mark.parametrize("member", [*ADAPTERS, *PLUGINS], ids=name_of)
def test_member_is_a_plugin_like_any_other(member):
    facts = project(member)
    group = "budwood.commands" if member in LIBRARIES else "budwood.plugins"
    assert member.name in facts["entry-points"][group], "the folder's name is the key in the YAML, or the command"
    assert ("budwood.plugins" in facts["entry-points"]) == (member not in LIBRARIES)
    assert any(re.fullmatch(r"budwood>=[\d.]+,<[\d.]+", line) for line in facts["dependencies"])


def test_constraints_name_no_place():
    lines = (ROOT / ".constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 100
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+( ; [^/@]+)?", line)] == []
    pinned = dict(line.split(" ;")[0].split("==") for line in pins)
    assert (3, 8) <= tuple(int(part) for part in pinned["mujoco"].split("."))[:2] < (3, 12)
    assert (5, 4) <= tuple(int(part) for part in pinned["transformers"].split("."))[:2] < (5, 6)


@pytest.fixture
def prepared(path, tmp_path, monkeypatch):
    """What the heading of a file says to run before it, as ``python -m`` one of our modules, was run before it."""
    monkeypatch.chdir(tmp_path)
    for module, words in re.findall(r"^#\s+python -m (budwood_\S+)(.*)$", path.read_text(), re.MULTILINE):
        monkeypatch.setattr(sys, "argv", [module, *words.split()])
        runpy.run_module(module, run_name="__main__")


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
@pytest.mark.usefixtures("prepared")
def test_config_opens_with_its_command_and_validates(path):
    from budwood.planning import explain

    assert path.read_text().startswith(f"# budwood run {path.relative_to(ROOT)}")
    assert path.parent.name in {folder.name for folder in [*ADAPTERS, *PLUGINS]}
    explain(path)


@pytest.mark.parametrize("path", STUDIES, ids=name_of)
@pytest.mark.usefixtures("prepared")
def test_study_opens_with_its_command_and_every_variant_validates(path):
    from budwood import grid, study_config

    assert path.read_text().startswith(f"# budwood study {path.relative_to(ROOT)}")
    grid.plans(study_config.load(path))


def test_there_are_configs():
    assert STUDIES
    assert {path.parent.name for path in CONFIGS} >= {folder.name for folder in PLUGINS}


# ---- who may import whom ---------------------------------------------------------------------------------------------


def test_api_imports_nothing_else_of_ours():
    assert violations(package(CORE) / "api", "budwood.api") == []


def test_core_imports_no_member_and_no_trainer():
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(package(CORE))
        for name, line in imports(path)
        if name.split(".")[0] in FOREIGN or name.split(".")[0].startswith("budwood_")
    ]
    assert found == []


@pytest.mark.parametrize("member", ADAPTERS, ids=name_of)
def test_adapters_import_the_api_and_no_plugin(member):
    assert violations(package(member), "budwood.api", "budwood_models", package(member).name) == []


@pytest.mark.parametrize("member", PLUGINS, ids=name_of)
def test_plugins_import_what_is_public_only(member):
    """``budwood.api``, and what any script may call: a plugin's own command runs runs like everybody."""
    calls = ("budwood.run", "budwood.resume", "budwood.restored", "budwood.graft")
    public = ("budwood.api", *calls, "budwood_models", package(member).name)
    assert violations(package(member), *public) == []


def test_core_knows_no_trainer_and_no_method_by_name():
    """Names, attributes and strings of its code; prose in docstrings may give examples."""
    found = []
    for path in sources(package(CORE)):
        tree = ast.parse(path.read_text())
        prose = set(docstrings(tree))
        for node in ast.walk(tree):
            words = set(re.findall(r"[a-z0-9]+(?:_[a-z0-9]+)*", text_of(node).lower())) if node not in prose else set()
            unexpected = words & METHODS - NAMED.get(path.name, set())
            found += [f"{path.relative_to(ROOT)}:{node.lineno}: {word}" for word in sorted(unexpected)]
    assert found == []


def text_of(node: ast.AST) -> str:
    match node:
        case ast.Constant(value=str() as text) | ast.Name(id=text) | ast.Attribute(attr=text) | ast.arg(arg=text):
            return text
        case ast.FunctionDef(name=text) | ast.ClassDef(name=text) | ast.keyword(arg=str() as text):
            return text
    return ""


def docstrings(tree: ast.AST) -> Iterator[ast.AST]:
    """Every string that stands as a statement: docstrings of modules, classes, functions and of attributes."""
    return (
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


@pytest.mark.parametrize("member", MEMBERS, ids=name_of)
def test_files_hold_one_idea(member):
    """Around 350 lines is where a file has learnt something that belongs elsewhere."""
    long = {
        str(path.relative_to(ROOT)): n
        for path in sources(package(member))
        if (n := len(path.read_text().splitlines())) > 380
    }
    assert long == {}
