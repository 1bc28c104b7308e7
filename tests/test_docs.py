"""What the documentation tells a reader to type works as printed."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from budwood import plugins

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: ``language``, the file it is the text of (``caption``), and its text."""

    language: str
    caption: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    for match in FENCE.finditer(page.read_text()):
        info, body, caption = match["info"].strip(), match["body"], ""
        if info.startswith("{code-block}"):
            info = info.removeprefix("{code-block}").strip()
            option, _, body = body.partition("\n")
            caption = option.removeprefix(":caption:").strip()
        yield Block(info, caption, body)


def install(package: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``pip install -e``: the package on the path, and its metadata beside it."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    requires = "".join(f"Requires-Dist: {line}\n" for line in project["dependencies"])
    head = f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(f"{head}{requires}\n{(package / project['readme']).read_text()}")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups]
    (info / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(package / "src"))
    monkeypatch.setenv("PYTHONPATH", f"{package / 'src'}:{site}")
    plugins._scan.cache_clear()


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in; plugins installed by the test are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    plugins._scan.cache_clear()


def test_tutorial(workshop, monkeypatch, capsys):
    """Files are written, commands typed and Python run in the order of the page."""
    from budwood.cli import main

    names: dict[str, object] = {}
    typed = []
    for block in blocks(ROOT / "docs" / "write-a-plugin.md"):
        if block.caption:
            path = workshop / block.caption
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, "write-a-plugin.md", "exec"), names)
        elif block.language == "console":
            for line in block.text.splitlines():
                command, *words = shlex.split(line.removeprefix("$ "))
                typed.append(command)
                if command == "pip":
                    install(workshop / words[-1], workshop / "site", monkeypatch)
                elif command == "touch":
                    (workshop / words[-1]).touch()
                elif command == "pytest":
                    assert pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(workshop), *words]) == 0
                else:
                    assert main(words) == 0, f"{line}\n{capsys.readouterr()}"
    assert typed == ["touch", "pip", "budwood", "budwood", "budwood", "budwood", "pytest"]
    printed = capsys.readouterr().out
    assert "budwood-smooth 0.1.0" in printed
    assert "errors 0, warnings 0" in printed


def test_readme_script(workshop, monkeypatch):
    """The README's script as printed, with fewer steps."""
    script = next(block for block in blocks(ROOT / "README.md") if block.language == "python")
    text, changed = re.subn(r"learn\([\d_]+\)", "learn(4_096)", script.text)
    assert changed == 1
    assert len([line for line in text.splitlines() if line.strip()]) <= 12
    names: dict[str, object] = {}
    exec(compile(text, "README.md", "exec"), names)
    assert list(workshop.glob("*.zip"))


def test_script_that_drives_a_saved_flow(workshop):
    """As printed, it earns what ``budwood flow-rl evaluate`` measures from the same seed."""
    point = pytest.importorskip("budwood_flow_rl.point")
    from budwood_flow_rl.evaluation import evaluate
    from budwood_flow_rl.saved import load_flow

    point.pretrain(workshop / "flow", point.demonstrations(seed=0), seed=0, steps=20)
    page = blocks(ROOT / "docs" / "methods" / "flow_rl" / "pretraining.md")
    (script,) = (block.text for block in page if block.language == "python" and "sample(" in block.text)
    names: dict[str, object] = {}
    exec(compile(script, "pretraining.md", "exec"), names)
    measured = evaluate(load_flow(workshop / "flow"), episodes=1, seed=0).returns
    assert measured.tolist() == [pytest.approx(names["earned"], rel=1e-5, abs=0)]


def test_setting_up_is_told_in_one_way():
    """The quickstart sets up with the README's own command, and CI runs the README's own test command."""
    shell = [block.text.strip() for block in blocks(ROOT / "README.md") if block.language == "sh"]
    demo = next(text for text in shell if text.endswith("budwood demo"))
    set_up = demo.rpartition(" && ")[0]
    quickstart = next(b.text for b in blocks(ROOT / "docs" / "quickstart.md") if b.language == "sh")
    assert quickstart.splitlines()[0] == set_up
    assert [text for text in shell if re.fullmatch(r"python -m venv .* pytest -n 2 --dist loadfile", text)]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_commands_exist(page):
    """Every `budwood WORD` in a shell block or in code type is a command, of core or of a member."""
    from budwood.cli import COMMANDS

    added = {item.entry.name for item in plugins.entry_points(plugins.COMMAND_GROUP)}

    text = page.read_text()
    shell = "\n".join(block.text for block in blocks(page) if block.language in ("sh", "console"))
    found = re.findall(r"^(?:\$ )?budwood ([a-z][a-z-]*)", shell, re.MULTILINE) + re.findall(
        r"`budwood ([a-z][a-z-]*)", text
    )
    assert set(found) <= {*COMMANDS, *added}
