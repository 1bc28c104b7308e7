"""The journal: nothing is lost, a torn line is no event, going back is exact, one writer at a time."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budwood import journal
from budwood.api import BudwoodError, CheckpointError, DiskFullError
from budwood.journal import Journal


def write(folder: Path, steps: range, resume_at: int | None = None) -> Journal:
    events = Journal(folder, resume_at)
    for step in steps:
        events.metrics({"loss": step / 3}, step)
    events.flush()
    return events


def test_values_come_back_bit_for_bit(tmp_path: Path) -> None:
    events = Journal(tmp_path)
    values: dict[str, float] = {
        "a": 0.1 + 0.2,
        "b": float(np.float32(0.1)),
        "c": 5e-324,
        "d": -0.0,
        "e": math.inf,
        "f": 7,
    }
    events.metrics(values, 3)
    scalars: Any = {"g": np.float32(0.1), "h": np.int64(7), "nan": np.float64("nan")}
    events.metrics(scalars, 4)
    events.close()
    history = journal.history(tmp_path)
    assert (history["g"][1], history["h"][1]) == ([float(np.float32(0.1))], [7.0])
    assert {key: history[key] for key in values} == {key: ([3], [float(value)]) for key, value in values.items()}
    assert math.copysign(1, history["d"][1][0]) == -1
    assert math.isnan(history["nan"][1][0])


def test_events_keep_their_kind_and_order(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    events = Journal(tmp_path)
    events.run({"name": "x"})
    events.tags({"a": "1"})
    events.artifact(tmp_path / "files", "kept")
    events.status("finished")
    events.close()
    events.close()
    found = journal.read(tmp_path)
    assert [event.kind for event in found] == ["run", "tags", "artifact", "status"]
    assert found[2].data == {"path": "files", "into": "kept"}
    assert all(abs(event.t / 1000 - time.time()) < 60 for event in found)


def test_nothing_reaches_the_file_before_a_flush_or_two_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Journal(tmp_path)
    events.metrics({"x": 1}, 1)
    assert journal.read(tmp_path) == []
    monkeypatch.setattr(journal, "FLUSH_SECONDS", -1.0)
    events.metrics({"x": 2}, 2)
    assert journal.history(tmp_path) == {"x": ([1, 2], [1.0, 2.0])}
    events.close()


@pytest.mark.parametrize("tail", [b'{"t": 1, "kind": "met', b'{"t": 1, "kind": "metrics", "data": {}}', b"\0\0\0\0"])
def test_torn_last_line_is_dropped(tmp_path: Path, tail: bytes) -> None:
    write(tmp_path, range(3)).close()
    with (tmp_path / journal.FILE).open("ab") as file:
        file.write(tail)
    assert len(journal.read(tmp_path)) == 3
    write(tmp_path, range(3, 5), resume_at=3).close()
    assert journal.history(tmp_path)["loss"] == ([0, 1, 2, 3, 4], [0 / 3, 1 / 3, 2 / 3, 3 / 3, 4 / 3])


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    write(tmp_path, range(3)).close()
    path = tmp_path / journal.FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{]\n" + lines[2])
    with pytest.raises(
        BudwoodError, match=rf"events\.jsonl: the line that ends at byte {len(lines[0]) + 3} is damaged"
    ):
        journal.read(tmp_path)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 100)), min_size=1, max_size=6))
def test_resuming_again_and_again_equals_a_list(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[int, int]]
) -> None:
    """Oracle: a Python list that is cut at N and appended to."""
    folder = tmp_path_factory.mktemp("journal")
    expected: list[int] = []
    for turn, (new, cut) in enumerate(turns):
        keep = cut % (len(expected) + 1)
        del expected[keep:]
        events = Journal(folder, resume_at=keep if turn else None)
        assert events.count == keep
        for _ in range(new):
            events.metrics({"x": float(turn)}, len(expected))
            expected.append(turn)
        assert events.count == len(expected)
        events.close()
    found = journal.read(folder)
    assert [(event.step, event.data["x"]) for event in found] == list(enumerate(expected))


def test_going_back_appends_and_remembers_what_it_took_back(tmp_path: Path) -> None:
    write(tmp_path, range(4)).close()
    before = (tmp_path / journal.FILE).read_bytes()
    write(tmp_path, range(2, 3), resume_at=2).close()
    after = (tmp_path / journal.FILE).read_bytes()
    assert after.startswith(before)
    points = {("loss", 2, repr(2 / 3)), ("loss", 3, repr(1.0))}
    assert journal.taken_back(tmp_path / journal.FILE, len(after)) == points
    assert journal.taken_back(tmp_path / journal.FILE, len(before)) == set()


def test_a_checkpoint_that_knows_more_than_the_journal_is_refused(tmp_path: Path) -> None:
    write(tmp_path, range(4)).close()
    with pytest.raises(CheckpointError, match="written after 5 events and the journal holds 4"):
        Journal(tmp_path, resume_at=5)
    write(tmp_path, range(4, 5), resume_at=4).close()


def test_new_run_wants_an_empty_folder_and_a_resume_does_not(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no journal here"):
        Journal(tmp_path, resume_at=0)
    write(tmp_path, range(1)).close()
    with pytest.raises(BudwoodError, match="already holds a run"):
        Journal(tmp_path)


def test_one_writer_at_a_time_and_readers_can_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "LOCK_SECONDS", 0.1)
    first = write(tmp_path, range(1))
    assert journal.is_written(tmp_path)
    with pytest.raises(BudwoodError, match="another process is training this run"):
        Journal(tmp_path, resume_at=1)
    first.close()
    assert not journal.is_written(tmp_path)
    Journal(tmp_path, resume_at=1).close()


def test_kill_leaves_whole_lines_and_no_lock(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from budwood.journal import Journal
events = Journal(Path(sys.argv[1]))
for step in range(10**9):
    events.metrics({"x": 0.5, "y": 1.5}, step)
    events.flush()
"""
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    while not (tmp_path / journal.FILE).exists() or (tmp_path / journal.FILE).stat().st_size < 10_000:
        time.sleep(0.001)
    child.kill()
    child.wait()
    assert not journal.is_written(tmp_path)
    steps, _ = journal.history(tmp_path)["x"]
    assert steps == list(range(len(steps)))
    Journal(tmp_path, resume_at=len(steps)).close()


def test_full_disk_keeps_whole_lines_and_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = write(tmp_path, range(3))
    real, room = os.write, [100]

    def write_until_full(fd: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real(fd, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", write_until_full)
    for step in range(3, 9):
        events.metrics({"loss": step / 3}, step)
    with pytest.raises(DiskFullError, match="no space left for the journal"):
        events.flush()
    written = (tmp_path / journal.FILE).read_bytes()
    assert written.endswith(b"\n")
    assert 3 < len([json.loads(line) for line in written.splitlines()]) < 9
    room[0] = 1_000_000
    events.close()
    assert journal.history(tmp_path)["loss"][0] == list(range(9))
