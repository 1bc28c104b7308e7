"""Run folders: names, status of a killed run, references, locks and disk errors."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from budwood.api import BudwoodError, ConfigError, DiskFullError
from budwood.folder import (
    STUDY,
    RunFolder,
    default_output,
    disk_error,
    find_run,
    list_runs,
    new_folder,
    prepare_output,
    write_atomically,
)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for index, name in enumerate(("hopper-s0-20260101-000000-aaaa", "hopper-s1-20260102-000000-bbbb")):
        run = RunFolder(tmp_path / name)
        run.create()
        run.write_status(run_id=name, status="finished", started=index)
    (tmp_path / "hopper-s1-20260102-000000-bbbb" / "tracking.json").write_text(json.dumps({"mlflow_run_id": "f00d"}))
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("last", "hopper-s1-20260102-000000-bbbb"),
        ("hopper-s0", "hopper-s0-20260101-000000-aaaa"),
        ("hopper-s1-20260102-000000-bbbb", "hopper-s1-20260102-000000-bbbb"),
        ("f00d", "hopper-s1-20260102-000000-bbbb"),
    ],
)
def test_a_run_is_found_by_what_a_person_remembers(runs: Path, reference: str, found: str) -> None:
    assert find_run(reference, runs).run_id == found
    assert find_run(str(runs / found)).run_id == found


def test_an_ambiguous_or_unknown_reference_says_what_there_is(runs: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_run("hopper", runs)
    assert str(caught.value).splitlines() == [
        "'hopper' fits 2 runs. Give more of the name:",
        "  - hopper-s0-20260101-000000-aaaa",
        "  - hopper-s1-20260102-000000-bbbb",
    ]
    with pytest.raises(ConfigError, match="no run 'walker' under"):
        find_run("walker", runs)


def test_a_running_run_whose_process_is_gone_was_killed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.locked():
        run.write_status(status="running", pid=os.getpid())
        assert run.status["status"] == "running"
    assert run.status["status"] == "killed", "this process lives, and its number may be another's: nobody trains"


def test_a_damaged_status_hides_no_other_run(runs: Path) -> None:
    (runs / "hopper-s0-20260101-000000-aaaa" / "status.json").write_text("")
    assert [run.status["status"] for run in list_runs(runs)] == ["unknown", "finished"]
    damaged = find_run("hopper-s0", runs)
    damaged.write_status(status="finished")
    assert damaged.status["status"] == "finished"


def test_a_folder_that_cannot_be_written_to_says_so_when_a_run_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()  # what the owner of every file cannot open either
    with pytest.raises(BudwoodError, match="writing failed"), RunFolder(tmp_path).locked():
        pass


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append((tmp_path / "status.json").exists()))
    write_atomically(tmp_path / "status.json", "{}")
    assert seen == [False]


def test_status_changes_keep_what_was_there(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_status(status="running", seed=3)
    run.write_status(status="finished")
    assert run.status == {"status": "finished", "seed": 3}


def test_the_runs_of_a_study_are_found_and_belong_to_the_same_output(runs: Path) -> None:
    study = runs / "grid"
    cell = RunFolder(study / "grid-a-s0")
    study.mkdir()
    cell.create()
    cell.create(again=True)
    cell.write_status(status="finished", started=9)
    assert [run.run_id for run in list_runs(runs)][2:] == []
    assert (cell.study, cell.output) == (None, study)
    (study / STUDY).write_text("{}")
    assert find_run("grid-a", runs).folder == find_run("last", runs).folder == cell.folder
    assert (cell.study, cell.output) == (study, runs)


def test_two_processes_cannot_train_one_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with (
        run.locked(),
        pytest.raises(BudwoodError, match=rf"another process \(pid {os.getpid()}\) is training this run"),
        run.locked(),
    ):
        pass


def test_names_are_safe_for_a_file_system() -> None:
    name = new_folder(Path("runs"), "../half cheetah/ä", 3).run_id
    assert name.startswith("half-cheetah-s3-")
    assert "/" not in name


def test_output_is_configured_or_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUDWOOD_OUTPUT", "elsewhere")
    assert default_output({"output": "here"}) == Path("here")
    assert default_output({}) == Path("elsewhere")
    monkeypatch.delenv("BUDWOOD_OUTPUT")
    assert default_output() == Path("runs")


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"is not a folder\. Choose another one\."):
        prepare_output(tmp_path / "file")


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (
            errno.ENOSPC,
            DiskFullError,
            "runs/x: no space left on the disk. Free some space, then continue with: budwood resume RUN. "
            "The last checkpoint is intact.",
        ),
        (errno.EROFS, ConfigError, "runs/x: this folder cannot be written to. Choose another one with output=FOLDER."),
    ],
)
def test_disk_errors_say_what_to_do(number: int, kind: type[BudwoodError], text: str) -> None:
    error = disk_error(OSError(number, os.strerror(number)), Path("runs/x"))
    assert type(error) is kind
    assert str(error) == text


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "status.json"
    write_atomically(target, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    assert list_runs(tmp_path / "nowhere") == []
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
