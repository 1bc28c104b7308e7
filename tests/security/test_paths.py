"""No name that a configuration, a plugin or a damaged file chooses leads out of the folder that it belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from budwood.api import BudwoodError, CheckpointError
from budwood.checkpoint import MANIFEST, Checkpoints, _digest
from budwood.folder import RunFolder, inside, list_runs, new_folder
from budwood.journal import FILE, Journal
from budwood.sink import Sink

ESCAPES = [
    "../up",
    "../../up",
    "/etc/up",
    "a/../../up",
    "..",
    ".",
    "",
    "a/b",
    "a\\..\\b",
    "~/up",
    "up\0",
    "up\n",
    "\uff0e\uff0e/up",
]

STUDY = """\
name: {name}
base: {{trainer: {{kind: sb3, algo: ppo, total_timesteps: 64}}, env: {{id: Pendulum-v1}}, output: {output}}}
variants: {{{variant}: {{}}}}
"""


def everything_under(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("name", ESCAPES)
def test_a_runs_name_is_one_word(name: str, budwood: Callable[..., Any], small: Path, output: Path) -> None:
    before = everything_under(small.parent)
    said = budwood("run", small, f"name={json.dumps(name)}")
    assert said.code == 2
    assert "a name starts with a letter or digit" in said.error
    assert everything_under(small.parent) - before <= {output}, "nothing but the folder of runs, which is empty"
    assert new_folder(output, name, 0).folder.parent == output


@pytest.mark.parametrize("seed", ["'../../up'", "[1]", "-1", "'3/../../up'"])
def test_a_seed_is_a_number(seed: str, budwood: Callable[..., Any], small: Path, output: Path) -> None:
    before = everything_under(small.parent)
    assert budwood("run", small, f"seed={seed}").code == 2
    assert everything_under(small.parent) - before <= {output}


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("what", ["name", "variant"])
def test_names_of_a_study_are_words(what: str, name: str, budwood: Callable[..., Any], output: Path) -> None:
    words = {"name": "study", "variant": "plain", what: json.dumps(name)}
    file = output.with_name("study.yaml")
    file.write_text(STUDY.format(**words, output=output))
    before = everything_under(output.parent)
    said = budwood("study", file)
    assert said.code == 2
    assert "a name starts with a letter or digit" in said.error
    assert everything_under(output.parent) == before


@pytest.mark.parametrize("name", ["../up", "/etc/up", "a/b", "..", "budwood", "a b/../c"])
def test_a_new_plugin_is_written_where_it_says(name: str, budwood: Callable[..., Any], output: Path) -> None:
    before = everything_under(output.parent)
    assert budwood("plugin", "new", name).code == 2
    assert everything_under(output.parent) == before


@pytest.mark.parametrize(
    "setting",
    [
        "trainer.args.tensorboard_log=../up",
        "trainer.args.tensorboard_log=/etc/up",
        "output=small.yaml",
    ],
)
def test_settings_that_write_elsewhere_are_refused(
    setting: str, budwood: Callable[..., Any], small: Path, output: Path
) -> None:
    before = everything_under(small.parent)
    assert budwood("run", small, setting).code == 2
    assert everything_under(small.parent) - before <= {output}


# ---- files that say where other files are ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("of somebody else")
    made = tmp_path / "run"
    made.mkdir()
    return made


@pytest.mark.parametrize("path", ["../secret.txt", "/etc/passwd", "..", "x/../../secret.txt"])
def test_an_artifact_lies_in_its_run(path: str, folder: Path) -> None:
    events = Journal(folder)
    with pytest.raises(BudwoodError, match="leads out of this folder"):
        events.artifact(folder / path)
    events.close()


def test_a_link_out_of_the_run_is_no_artifact(folder: Path) -> None:
    (folder / "export").mkdir()
    (folder / "export" / "model.zip").symlink_to(folder.parent / "secret.txt")
    (folder / "all").symlink_to(folder.parent)
    for path in (folder / "export", folder / "export" / "model.zip", folder / "all", folder / "all" / "secret.txt"):
        with pytest.raises(BudwoodError, match="leads out of this folder"):
            inside(folder, path)
    (folder / "export" / "within").symlink_to(folder)
    (folder / "export" / "model.zip").unlink()
    assert inside(folder, folder / "export") == folder / "export"


@pytest.mark.parametrize("path", ["../secret.txt", "{there}", "export"])
def test_a_journal_of_elsewhere_sends_no_file_of_yours(
    path: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """``budwood runs --sync`` over a folder that somebody sent: the tracker gets what lies in it."""
    (folder / "export").mkdir()
    (folder / "export" / "link").symlink_to(folder.parent / "secret.txt")
    (folder / "report.html").write_text("of the run")
    said = {"name": "x", "experiment": "x", "uri": "sqlite:///x.db", "parent": None, "params": {}, "tags": {}}
    paths = [path.replace("{there}", str(folder.parent / "secret.txt")), "report.html"]
    lines: list[dict[str, Any]] = [{"t": 1, "kind": "run", "data": said}]
    lines += [{"t": 2, "kind": "artifact", "data": {"path": one, "into": "../.."}} for one in paths]
    (folder / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    sent: list[Path] = []
    sink = Sink(folder)
    sink.store = SimpleNamespace(  # type: ignore[assignment]
        open=lambda run: ("0", "1"),
        describe=lambda *_: None,
        artifact=lambda run_id, path, into: sent.append(path),
    )
    assert sink.send()
    assert sent == [folder / "report.html"]
    assert "leads out of this folder" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["../../secret.txt", "{there}", "..", ""])
def test_a_manifest_names_files_of_its_checkpoint(name: str, folder: Path) -> None:
    """Its digest may be right: whoever writes a manifest can compute one."""
    store = Checkpoints(folder, 2)
    path = store.save(1, {"x": [1, 2]}, {})
    manifest = json.loads((path / MANIFEST).read_bytes())
    del manifest["sha256"]
    elsewhere = name.replace("{there}", str(folder.parent / "secret.txt"))
    manifest["files"][elsewhere] = {"size": 16, "sha256": "0" * 64}
    (path / MANIFEST).write_text(json.dumps({**manifest, "sha256": _digest(manifest)}))
    with pytest.raises(CheckpointError, match="instead of state"):
        store.load(path)


def test_a_manifest_that_leaves_files_out_vouches_for_nothing(folder: Path) -> None:
    store = Checkpoints(folder, 2)
    path = store.save(1, {"x": [1, 2]}, {})
    manifest = json.loads((path / MANIFEST).read_bytes())
    del manifest["sha256"]
    manifest["files"] = {}
    (path / MANIFEST).write_text(json.dumps({**manifest, "sha256": _digest(manifest)}))
    with pytest.raises(CheckpointError, match="names no file instead of state"):
        store.load(path)


@pytest.mark.parametrize("name", ["step_000000000009/../../../up", "step_9", "..", "step_000000000001\n"])
def test_only_folders_named_like_checkpoints_are_checkpoints(name: str, folder: Path) -> None:
    store = Checkpoints(folder, 1)
    kept = store.save(5, {"x": 1}, {})
    if "/" not in name and name != "..":
        (folder / name).mkdir()
        (folder / name / "mine").write_text("x")
    for steps in (6, 7):
        kept = store.save(steps, {"x": 1}, {})
    assert store.latest() == (kept, [])
    if "/" not in name and name != "..":
        assert (folder / name / "mine").exists(), "pruning removes checkpoints alone"


def test_a_folder_of_checkpoints_that_is_a_link_is_not_pruned_through(folder: Path) -> None:
    """Old checkpoints are removed; a link by their name is not followed."""
    store = Checkpoints(folder, 1)
    (folder.parent / "precious").mkdir()
    (folder.parent / "precious" / "thesis.tex").write_text("x")
    (folder / "step_000000000001").symlink_to(folder.parent / "precious")
    with pytest.raises(BudwoodError):
        store.save(2, {"x": 1}, {})
    assert (folder.parent / "precious" / "thesis.tex").exists()


def test_a_run_is_found_by_its_name_alone(output: Path) -> None:
    output.mkdir(parents=True)
    RunFolder(output / "a").create()
    (output / "a" / "status.json").write_text("{}")
    (output.parent / "b").mkdir()
    (output.parent / "b" / "status.json").write_text("{}")
    assert [run.run_id for run in list_runs(output)] == ["a"]
