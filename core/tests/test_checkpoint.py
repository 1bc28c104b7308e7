"""Checkpoints are whole or absent, every kind of damage is found and named, a full disk costs nothing that was there."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest

from budwood.api import CheckpointError, DiskFullError
from budwood.checkpoint import Checkpoints

META = {"steps": 100, "config_digest": "ab" * 32, "versions": {"budwood": "0.1.0"}}


def state(seed: int) -> dict:
    return {"trainer": {"w": np.random.default_rng(seed).normal(size=300)}, "session": {"steps": seed, "notes": ["é"]}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path / "run" / "checkpoints", keep=3)


def test_save_and_load(checkpoints):
    path = checkpoints.save(20480, state(1), META)
    assert path == checkpoints.folder / "step_000000020480"
    assert names(path) == ["manifest.json", "state.json", "tensors.safetensors"]
    loaded, meta = checkpoints.load(path)
    assert meta == META
    assert loaded["session"] == state(1)["session"]
    assert np.array_equal(loaded["trainer"]["w"], state(1)["trainer"]["w"])
    assert checkpoints.latest() == (path, [])


def test_none_without_checkpoints(checkpoints):
    assert checkpoints.latest() is None
    checkpoints.folder.mkdir(parents=True)
    (checkpoints.folder / ".tmp-step_000000000005").mkdir()
    (checkpoints.folder / "notes.txt").touch()
    assert checkpoints.latest() is None


def test_keeps_the_newest(checkpoints):
    for steps in (0, 100, 200, 300, 1_000_000_000_000_000):
        newest = checkpoints.save(steps, state(steps % 7), META)
    assert names(checkpoints.folder) == ["step_000000000200", "step_000000000300", "step_1000000000000000"]
    assert checkpoints.latest() == (newest, [])


def test_one_of_a_step(checkpoints):
    for steps in (100, 200, 200):
        newest = checkpoints.save(steps, state(steps), META)
    assert checkpoints.at(100).name == "step_000000000100"
    assert checkpoints.at(200) == newest
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 150\. Kept are those of: 100, 200\."):
        checkpoints.at(150)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_keep_counts(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, keep)
    for steps in range(4):
        checkpoints.save(steps, state(steps), META)
        assert len(names(tmp_path)) == min(steps + 1, keep)
    with pytest.raises(ValueError, match="at least one"):
        Checkpoints(tmp_path, 0)


def test_saving_a_step_again_replaces_it_without_overwriting(checkpoints):
    checkpoints.save(100, state(1), META)
    for seed in (2, 3):
        checkpoints.save(200, state(seed), META)
    assert names(checkpoints.folder) == ["step_000000000100", "step_000000000200.1"]
    path, _ = checkpoints.latest()
    assert checkpoints.load(path)[0]["session"]["steps"] == 3


def test_unfinished_folders_of_a_killed_process_are_ignored_then_removed(checkpoints):
    path = checkpoints.save(100, state(1), META)
    leftover = checkpoints.folder / ".tmp-step_000000000200"
    leftover.mkdir()
    (leftover / "state.json").write_text("{")
    assert checkpoints.latest() == (path, [])
    assert leftover.exists()
    checkpoints.save(200, state(2), META)
    assert names(checkpoints.folder) == ["step_000000000100", "step_000000000200"]


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[random.Random(str(path.name)).randrange(len(data))] ^= 0x10
    path.write_bytes(data)


DAMAGE = {
    "altered": (alter, r"was altered|cannot be read"),
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 1), r"bytes instead of|cannot be read"),
    "missing": (lambda path: path.unlink(), "is missing"),
    "empty": (lambda path: os.truncate(path, 0), r"has 0 bytes instead of|cannot be read"),
}


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_named_and_the_previous_one_used(checkpoints, damage, file):
    good = checkpoints.save(100, state(1), META)
    bad = checkpoints.save(200, state(2), META)
    harm, message = DAMAGE[damage]
    harm(bad / file)
    with pytest.raises(CheckpointError, match=rf"{file} .*({message})|{file} ({message})") as caught:
        checkpoints.load(bad)
    assert caught.value.where == str(bad)
    path, skipped = checkpoints.latest()
    assert path == good
    assert len(skipped) == 1
    assert skipped[0].startswith(f"step_000000000200: {file} ")


def test_every_altered_byte_is_found(checkpoints):
    path = checkpoints.save(100, {"x": np.arange(3.0), "y": [1, "two"]}, {"steps": 1.5})
    for file in path.iterdir():
        original = file.read_bytes()
        for position in range(0, len(original), 7):
            data = bytearray(original)
            data[position] ^= 1
            file.write_bytes(data)
            with pytest.raises(CheckpointError):
                checkpoints.load(path)
        file.write_bytes(original)
    checkpoints.load(path)


def test_only_damaged_ones_is_an_error_that_names_them(checkpoints):
    for steps in (100, 200):
        alter(checkpoints.save(steps, state(1), META) / "tensors.safetensors")
    with pytest.raises(
        CheckpointError, match=r"every checkpoint is damaged \(step_000000000200: .*; step_000000000100: "
    ):
        checkpoints.latest()


def test_another_format_is_named(checkpoints, monkeypatch):
    monkeypatch.setattr("budwood.checkpoint.FORMAT", 2)
    path = checkpoints.save(100, state(1), META)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="it has format 2, and this version of budwood reads format 1"):
        checkpoints.load(path)


def test_resuming_further_back_drops_what_came_after(checkpoints):
    """Step 300 is damaged and 200 resumed: the checkpoint of 250 is the newest, and 300 no longer in its way."""
    for steps in (100, 200, 300):
        checkpoints.save(steps, state(steps), META)
    alter(checkpoints.folder / "step_000000000300" / "state.json")
    path = checkpoints.save(250, state(5), META)
    assert checkpoints.latest() == (path, [])
    assert names(checkpoints.folder) == ["step_000000000100", "step_000000000200", "step_000000000250"]


def test_meta_must_be_json(checkpoints):
    with pytest.raises(CheckpointError, match="plain JSON"):
        checkpoints.save(1, state(1), {"path": Path("x")})
    assert not checkpoints.folder.exists()


def test_a_state_that_cannot_be_stored_writes_nothing(checkpoints):
    with pytest.raises(CheckpointError, match=r"state\.plugins\.mine: a checkpoint cannot hold a builtins\.set"):
        checkpoints.save(1, {"plugins": {"mine": {1}}}, META)
    assert not checkpoints.folder.exists()


@pytest.mark.parametrize("after", range(0, 60_000, 6000))
def test_disk_full_at_any_moment(checkpoints, monkeypatch, after):
    """``os.write`` and ``os.fsync`` run out of space after so many bytes."""
    old = checkpoints.save(100, state(1), META)
    left, write = after, os.write

    def limited(descriptor: int, data: memoryview) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, data[:left])
        left -= written
        return written

    monkeypatch.setattr(os, "write", limited)
    with pytest.raises(DiskFullError) as caught:
        checkpoints.save(200, {"big": np.arange(8000.0), **state(2)}, META)
    monkeypatch.undo()
    assert "no space left for the checkpoint of step 200" in str(caught.value)
    assert "step_000000000100 is complete" in str(caught.value)
    assert names(checkpoints.folder) == [old.name]
    assert checkpoints.latest() == (old, [])
    checkpoints.save(200, state(2), META)


@pytest.mark.parametrize("call", ["fsync", "mkdir"])
def test_disk_full_outside_of_write(checkpoints, monkeypatch, call):
    old = checkpoints.save(100, state(1), META)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DiskFullError):
        checkpoints.save(200, state(2), META)
    monkeypatch.undo()
    assert names(checkpoints.folder) == [old.name]


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 KiB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no right to mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=20)


def test_a_real_full_disk(small_disk):
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=3)
    big = {"w": np.arange(12_500.0)}  # 100 kB
    first = checkpoints.save(1, big, META)
    second = checkpoints.save(2, big, META)
    with pytest.raises(DiskFullError, match=r"no space left for the checkpoint of step 3 \(0\.1 MB\)"):
        checkpoints.save(3, big, META)
    assert names(checkpoints.folder) == [first.name, second.name]
    assert checkpoints.latest() == (second, [])
    assert np.array_equal(checkpoints.load(second)[0]["w"], big["w"])


def test_a_read_only_file_system(small_disk):
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=3)
    path = checkpoints.save(1, state(1), META)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=20)
    with pytest.raises(
        CheckpointError, match=r"cannot write the checkpoint of step 2: Read-only file system"
    ) as caught:
        checkpoints.save(2, state(2), META)
    assert str(small_disk) in caught.value.where
    assert checkpoints.latest() == (path, [])


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint of step 1: (Not a directory|File exists)"):
        Checkpoints(tmp_path / "file" / "checkpoints", keep=1).save(1, state(1), META)


def test_an_interrupt_leaves_nothing_behind(checkpoints, monkeypatch):
    old = checkpoints.save(100, state(1), META)

    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(200, state(2), META)
    assert names(checkpoints.folder) == [old.name]


def test_files_and_folders_are_synced_before_and_after_the_rename(checkpoints, monkeypatch):
    events: list[str] = []
    sync, rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), sync(fd))
    )
    monkeypatch.setattr(os, "rename", lambda *args: (events.append("rename"), rename(*args)))
    monkeypatch.setattr(Path, "rename", lambda self, target: os.rename(self, target))
    checkpoints.save(1, state(1), META)
    work = ".tmp-step_000000000001"
    assert events == ["state.json", "tensors.safetensors", "manifest.json", work, "rename", "checkpoints"]


def test_the_manifest_is_readable(checkpoints):
    manifest = json.loads((checkpoints.save(7, state(1), META) / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["steps"] == 7
    assert manifest["files"].keys() == {"state.json", "tensors.safetensors"}
