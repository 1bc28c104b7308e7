"""Facts about the machine come from metadata and files, and doctor says what to do."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from budwood import machine, tracking
from budwood.api import BudwoodError
from budwood.machine import Finding


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MLFLOW_TRACKING_URI", "OMP_NUM_THREADS", "MUJOCO_GL", "BUDWOOD_OUTPUT"):
        monkeypatch.delenv(variable, raising=False)


def test_versions_are_those_of_the_metadata() -> None:
    versions = machine.versions()
    assert list(versions) == sorted(versions)
    assert versions["mlflow"] == metadata.version("mlflow")
    assert versions["budwood"] == metadata.version("budwood")
    assert versions["python"].startswith("3.12")


def test_version_changes_name_what_came_went_and_moved() -> None:
    before = {**machine.versions(), "numpy": "1.0", "gone": "2.0"}
    before.pop("rich")
    assert machine.version_changes(before) == [
        "gone was 2.0 and is not installed now",
        f"numpy was 1.0 and is {metadata.version('numpy')} now",
        f"rich was not installed and is {metadata.version('rich')} now",
    ]
    assert machine.version_changes(machine.versions()) == []


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_and_dirty(tmp_path: Path) -> None:
    assert machine.git(tmp_path) == {}
    git(tmp_path, "init", "-q")
    assert machine.git(tmp_path) == {}, "no commit yet"
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("1")
    assert machine.git(tmp_path) == {"git.commit": commit, "git.dirty": "false"}
    (tmp_path / "file").write_text("2")
    assert machine.git(tmp_path) == {"git.commit": commit, "git.dirty": "true"}


def test_absent_or_slow_git_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "git").write_text("#!/bin/sh\nexec sleep 30\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setattr(machine, "GIT_SECONDS", 0.2)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert machine.git(tmp_path) == {}
    monkeypatch.setenv("PATH", "")
    assert machine.git(tmp_path) == {}


def test_hardware_and_tags_are_text_for_a_tracker() -> None:
    facts = machine.hardware()
    assert facts["cpu"]
    assert 1 <= int(facts["cores"]) <= (os.cpu_count() or 1)
    assert 0.1 < float(facts["memory_gb"]) < 1e5
    tags = machine.tags()
    assert tags["hardware.cores"] == str(facts["cores"])
    assert all(isinstance(value, str) for value in tags.values())


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("", 8)])
def test_cores_respect_a_containers_quota(quota: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(machine, "_text", lambda path: quota if "cpu.max" in str(path) else "")
    assert machine.cores() == expected


def test_gpu_names_come_from_torch_only_if_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert machine._gpus() == []
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, get_device_name="card {}".format)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert machine.hardware()["gpu"] == "card 0, card 1"


def test_doctor_is_content_here_and_imports_nothing_heavy(tmp_path: Path) -> None:
    script = "\n".join(
        [
            "import sys; from pathlib import Path; from budwood import machine",
            "print([f for f in machine.doctor(Path(sys.argv[1])) if f.level == 'error'])",
            "print([name for name in ('torch', 'mlflow', 'gymnasium', 'matplotlib') if name in sys.modules])",
        ]
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["[]", "[]"]
    assert list(tmp_path.iterdir()) == []


def test_doctor_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = machine._output(tmp_path / "not" / "yet")
    assert (found.level, found.what.split(":")[0]) == ("ok", str(tmp_path / "not" / "yet"))
    assert not (tmp_path / "not").exists()
    for free, level in ((1e9, "warn"), (1e8, "error")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        (found,) = machine._output(tmp_path)
        assert (found.level, found.do) == (level, "Free some space, or choose another output folder")

    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    (found,) = machine._output(tmp_path)
    assert (found.level, found.what) == ("error", f"cannot write in {tmp_path}: Permission denied")


def test_doctor_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = machine._tracker(tmp_path)
    assert found == Finding("ok", "tracker", f"MLflow at sqlite:///{tmp_path}/mlflow.db")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@{address}")
        assert list(machine._tracker(tmp_path)) == [Finding("ok", "tracker", f"http://me:***@{address} answers")]
    torn = BudwoodError("damaged", where="c", do="Restore the file")
    monkeypatch.setattr(tracking, "pending", lambda _: tracking.Pending([Path("a"), Path("b")], [torn]))
    gone, damaged, waiting = machine._tracker(tmp_path)
    assert (gone.level, gone.do) == ("warn", "Start it, or check MLFLOW_TRACKING_URI")
    assert "secret" not in gone.what
    assert damaged == Finding("error", "tracker", "c: damaged", "Restore the file")
    assert waiting == Finding(
        "warn", "tracker", "2 runs have something that MLflow has not got yet: a, b", "budwood runs --sync"
    )


def test_doctor_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert next(machine._threads()).what == "OMP_NUM_THREADS=unset, 2 cores"
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    expected = Finding(
        "warn", "threads", "OMP_NUM_THREADS=16 on 2 cores slows training down", "export OMP_NUM_THREADS=2"
    )
    assert list(machine._threads()) == [expected]


def test_doctor_packages_outside_a_plugins_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extra's bound holds as soon as its package is installed, whoever installed it."""
    distribution = SimpleNamespace(
        requires=[
            "mujoco>=3.8,<3.12; extra == 'mujoco'",
            "absent>=2",
            "numpy<1; python_version < '3'",
            "other; extra=='x'",
        ],
        metadata=SimpleNamespace(get_all=lambda _: ["mujoco", "x"]),
    )
    installed = {"mujoco": "4.0.0", "numpy": "2.0", "mlflow": "3.17"}
    monkeypatch.setattr(machine, "_ours", lambda: ["budwood-sb3"])
    monkeypatch.setattr(machine, "_version", installed.get)
    monkeypatch.setattr(metadata, "distribution", lambda _: distribution)
    assert [(f.level, f.what, f.do) for f in list(machine._packages())] == [
        ("warn", "mujoco 4.0.0 is outside <3.12,>=3.8, which budwood-sb3 needs", 'pip install "mujoco<3.12,>=3.8"'),
        ("error", "budwood-sb3 needs absent: not installed", 'pip install "absent>=2"'),
        ("ok", "mlflow 3.17", ""),
        ("warn", "torch is not installed: no training here", "pip install torch"),
    ]


def test_doctor_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries: set[str] = set()
    monkeypatch.setattr(machine, "_version", {"mujoco": "3.11.0"}.get)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: name if name in libraries else None)
    assert [f.level for f in machine._rendering()] == ["warn"]
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert [(f.level, f.do) for f in machine._rendering()] == [
        ("error", "Unset MUJOCO_GL, or install libegl1 or libosmesa6")
    ]
    libraries.add("EGL")
    assert [(f.level, f.what) for f in machine._rendering()] == [("ok", "off-screen rendering with EGL")]


def test_a_damaged_journal_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.jsonl").write_text("garbage\n")
    assert list(machine._tracker(tmp_path))[-1] == Finding(
        "error", "tracker", f"{tmp_path}/run/events.jsonl: the line that ends at byte 8 is damaged", "Restore the file"
    )


def test_cpu_time_includes_children_that_live_and_that_ended() -> None:
    work = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    before = machine.cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        living = machine.cpu_seconds() - before
        child.communicate(b"\n")
    assert living >= 0.45
    assert machine.cpu_seconds() - before >= 0.45


def test_cpu_time_includes_what_living_children_started() -> None:
    """As with environments in processes of their own: each is a child of the process that forks them."""
    work = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {work!r}])"
    before = machine.cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        living = machine.cpu_seconds() - before
        child.communicate(b"\n")
    assert living >= 0.45
    assert machine.cpu_seconds() - before >= 0.45
