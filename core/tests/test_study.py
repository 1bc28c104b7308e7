"""A study from end to end: run, stopped in every way, continued, changed, and never running a finished run twice."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from html import escape
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import budwood
from budwood import pool, studies, study_page, tracking
from budwood.api import BudwoodError, ConfigError
from budwood.checkpoint import Checkpoints
from budwood.cli import main
from budwood.folder import LOCK, list_runs
from budwood.folder import STUDY as STUDY_FILE
from budwood.yaml_io import dump

pytestmark = pytest.mark.usefixtures("toy")

STUDY: dict[str, Any] = {
    "name": "grid",
    "base": {
        "trainer": {"kind": "toy"},
        "evaluation": {"every": 20, "episodes": 2},
        "checkpoint": {"every": 20},
        "tracking": {"enabled": False},
    },
    "seeds": 2,
    "budget": 90,
    "processes": 2,
    "variants": {"plain": None, "fast": {"trainer.rate": 0.3}},
    "metrics": {
        "return": {"metric": "eval/return_mean", "of": "eval/env_steps"},
        "steps to 1": {"metric": "toy/policy", "reaches": 1.0, "of": "toy/env_steps"},
    },
}


DRAWINGS = study_page.drawings


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUDWOOD_OUTPUT", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def file(output: Path) -> Path:
    path = output.with_name("grid.yaml")
    path.write_text(dump(STUDY))
    return path


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The folder of the study that tests share, and what it answered when it ran: see :func:`finished`."""
    return SimpleNamespace(folder=tmp_path_factory.mktemp("once"), result=None)


@pytest.fixture
def finished(toy: Path, once: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its file: all four runs of it are finished, as they were left, and as if no other test had been here.

    It is trained by the first test that asks for it. Processes take longer to start than these runs to train.
    """
    folder, kept = once.folder / "now", once.folder / "kept"
    if once.result is not None:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BUDWOOD_OUTPUT", str(folder / "runs"))
    path = folder / "grid.yaml"
    if once.result is None:
        path.write_text(dump(STUDY))
        with monkeypatch.context() as drawing:
            drawing.setattr(study_page, "drawings", DRAWINGS)  # whether or not this test wants any
            once.result = budwood.study(path)
        shutil.copytree(folder, kept)
    return path


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs."""
    monkeypatch.setattr(study_page, "drawings", lambda *_: [])


def altered(file: Path, **changes: Any) -> Path:
    file.write_text(dump({**STUDY, **changes}))
    return file


def sittings(output: Path) -> dict[str, int]:
    """run id -> how often it was trained at: a ``run`` line of its journal each time."""
    return {run.run_id: (run.folder / "events.jsonl").read_text().count('"kind":"run"') for run in list_runs(output)}


def numbers(result: Mapping[str, Any] | studies.StudyResult) -> list[tuple[Any, ...]]:
    """The rows of a study without processor times, to be compared exactly."""
    cells = result["cells"] if isinstance(result, Mapping) else result.cells
    return [tuple(repr(value) for key, value in row.items() if key != "cpu_minutes") for row in cells]


def command(*words: str | Path, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "budwood", "study", *map(str, words), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


# ---- run and run again -------------------------------------------------------------------------------------------------


def test_a_study_runs_and_running_it_again_runs_nothing(finished: Path, once: SimpleNamespace) -> None:
    first, output = once.result, finished.with_name("runs")
    assert (first.status, first.failed) == ("finished", {})
    assert [(row["variant"], row["seed"]) for row in first.cells] == [
        ("plain", 0), ("fast", 0), ("plain", 1), ("fast", 1),
    ]  # fmt: skip
    assert all(row["status"] == "finished" and row["cpu_minutes"] > 0 for row in first.cells)
    assert all(90 <= row["env_steps"] < 105 for row in first.cells), "ten steps a boundary, two an evaluation"
    assert {row["steps to 1 censored"] for row in first.cells} == {True, False}
    assert [row["probability"] for row in first.pairs] == [1.0, 1.0], "fast is better and sooner"

    folder = Path(first.paths["folder"])
    assert folder == output.resolve() / "grid"
    with (folder / "study.csv").open() as table:
        read = list(csv.DictReader(table))
    assert [float(row["return"]) for row in read] == [row["return"] for row in first.cells]
    assert len((folder / "summary.csv").read_text().splitlines()) == 1 + 2 * 2
    page = (folder / "study.html").read_text()
    assert page.count("<svg") >= 3
    assert "trainer.rate" in page, "what the variants differ in"
    assert all((folder / f"{name}.svg").read_text().startswith("<?xml") for name in ("curves", "intervals", "profile"))

    said = {log: log.read_text() for log in folder.glob("*/log.txt")}
    again = budwood.study(finished)
    assert numbers(again) == numbers(first)
    assert set(sittings(output).values()) == {1}
    assert {log: log.read_text() for log in folder.glob("*/log.txt")} == said, (
        "no process was started for a finished run"
    )


@pytest.mark.usefixtures("no_figures")
def test_the_runs_of_a_study_are_runs_like_others(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "grid-fast-s0", "--episodes", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["returns"]) == 3
    assert main(["runs", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["status"]) == ("grid", "study, 4 of 4 runs finished")


@pytest.mark.usefixtures("no_figures")
def test_seeds_and_variants_are_added_and_taken_away(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = finished.with_name("runs")
    budwood.study(finished, seeds=[7], only=["plain"])
    assert set(sittings(output)) == {
        f"grid-{run}" for run in ("plain-s0", "fast-s0", "plain-s1", "fast-s1", "plain-s7")
    }
    result = budwood.study(altered(finished, variants={"plain": None, "slow": {"trainer.rate": 0.05}}), seeds=[7])
    assert (result.status, len(result.cells)) == ("finished", 2)
    assert set(sittings(output).values()) == {1}
    fewer = budwood.study(altered(finished, variants={"slow": {"trainer.rate": 0.05}}), seeds=[7])
    assert [row["run"] for row in fewer.cells] == ["grid-slow-s7"]

    def listed() -> tuple[str, str]:
        capsys.readouterr()
        assert main(["runs", "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        return row["name"], row["status"]

    assert listed() == ("grid", "study, 1 of 1 runs finished"), "the others lie there still"
    (output / "grid" / STUDY_FILE).write_text("{")
    assert listed() == ("grid", "study, 6 of 6 runs finished"), "a power cut took what it was told"


@pytest.mark.usefixtures("no_figures")
def test_metrics_and_figures_may_change_and_what_was_trained_may_not(finished: Path) -> None:
    output = finished.with_name("runs")
    metrics = {"policy": {"metric": "toy/policy", "take": "best"}}
    assert set(budwood.study(altered(finished, metrics=metrics, pairs=[]), seeds=1).cells[0]) >= {"policy"}

    told = (output / "grid" / STUDY_FILE).read_text()
    changed = {**STUDY["variants"], "fast": {"trainer.rate": 0.4}}
    with pytest.raises(ConfigError) as caught:
        budwood.study(altered(finished, variants=changed), seeds=1)
    assert caught.value.problems == ("variant fast (1 run): trainer.rate",)
    with pytest.raises(ConfigError, match="no longer describes"):
        budwood.study(altered(finished, variants=changed), seeds=7)
    assert (output / "grid" / STUDY_FILE).read_text() == told, "what is refused marks nothing"
    with pytest.raises(ConfigError, match="no longer describes") as caught:
        budwood.study(altered(finished), seeds=1, budget=60)
    assert caught.value.problems == ("variant plain (1 run): budget", "variant fast (1 run): budget")
    tables = budwood.study(altered(finished, variants=changed), seeds=1, tables_only=True)
    assert tables.status == "finished"
    assert set(sittings(output).values()) == {1}


@pytest.mark.usefixtures("no_figures")
def test_a_misspelt_metric_is_told_after_the_first_run_and_costs_none(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = {"return": {"metric": "eval/retrun_mean"}}
    altered(file, metrics=metrics, variants={"plain": None})
    assert main(["study", str(file), "seeds=2", "--processes", "1"]) == 0
    said = capsys.readouterr().err
    early, late = said.index("so far no run logged 'eval/retrun_mean'"), said.index("grid-plain-s1 finished")
    assert early < late
    assert said.count("so far no run logged") == 1
    result = budwood.study(file, seeds=2)
    assert result.notes == ["no run logged 'eval/retrun_mean' (did you mean 'eval/return_mean'?)"]
    assert [row["n"] for row in result.summary] == [0]


@pytest.mark.usefixtures("no_figures")
def test_a_cell_imports_what_the_study_can_import(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter is on the path of this process alone, as that of a notebook or of a script beside it."""
    monkeypatch.delenv("PYTHONPATH")
    assert budwood.study(altered(file, variants={"plain": None}), seeds=1).status == "finished"


# ---- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
def test_a_failed_run_is_reported_stops_no_other_and_is_tried_again(
    file: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    altered(file, variants={"bad": {"trainer.fails": True}, "plain": None})
    assert main(["study", str(file), "seeds=1", "--json"]) == 1
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert answer["status"] == "failed"
    assert list(answer["failed"]) == ["grid-bad-s0"]
    assert "this one fails" in answer["failed"]["grid-bad-s0"]
    assert "grid-bad-s0 failed: this one fails" in said.err
    assert "grid-plain-s0 finished: return " in said.err
    assert {row["variant"]: row["status"] for row in answer["cells"]} == {"bad": "failed", "plain": "finished"}
    assert main(["study", str(file), "seeds=1", "trainer.rate=0.1", "--only", "bad", "--processes", "1"]) == 1
    again = f"Continue with: budwood study {file} seeds=1 trainer.rate=0.1 --processes 1 --only bad\n"
    assert again in capsys.readouterr().out
    assert sittings(output) == {"grid-bad-s0": 2, "grid-plain-s0": 1}


def test_what_fails_before_training_is_told_of_every_variant_at_once(file: Path, output: Path) -> None:
    wrong = {"one": {"trainer.rat": 0.1}, "two": {"trainer.rate": "fast", "plugins.nobody": {}}, "plain": None}
    with pytest.raises(ConfigError) as caught:
        budwood.study(altered(file, variants=wrong))
    assert [problem.split(": ")[0] for problem in caught.value.problems] == ["variant one", "variant two"]
    assert "did you mean 'rate'?" in caught.value.problems[0]
    assert not output.exists()


def test_a_problem_in_the_base_is_placed_in_its_file(file: Path) -> None:
    base = file.with_name("shared.yaml")
    base.write_text("trainer:\n  kind: toy\n  total_steps: 50\n  rat: 0.2\n")
    with pytest.raises(ConfigError) as caught:
        budwood.study(altered(file, base="shared.yaml", variants={"plain": None, "fast": {"trainer.rats": 0.3}}))
    told = "\n".join(caught.value.problems)
    assert f"trainer.rat (line 4 of {base}): unknown key" in told
    assert "trainer.rats (override): unknown key" in told


def test_the_newest_run_is_no_start_for_a_study_that_goes_on_later(file: Path, output: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        budwood.study(file, init_from="last")
    assert caught.value.problems == tuple(
        f"variant {variant}: init_from: 'last' is another run when the study goes on; name it: budwood runs lists them"
        for variant in STUDY["variants"]
    )
    assert not output.exists()


def test_runs_that_several_processes_are_to_train_are_refused_before_any_starts(file: Path, output: Path) -> None:
    both = {"plain": {"processes": 1}, "two": {"processes": 2}}
    with pytest.raises(ConfigError) as caught:
        budwood.study(altered(file, variants=both))
    (problem,) = caught.value.problems
    assert problem.startswith(
        "variant two: processes: 2 processes are to train each run, and a study trains every run in one"
    )
    assert not output.exists()


# ---- stopped and continued ---------------------------------------------------------------------------------------------


@pytest.fixture
def held(file: Path, tmp_path: Path) -> Iterator[Path]:
    """The FIFO that every run of seed 0 waits at after 50 steps; ``grid.yaml`` says so."""
    fifo = tmp_path / "hold"
    os.mkfifo(fifo)
    base = {**STUDY["base"], "trainer": {"kind": "toy", "hold": str(fifo)}}
    altered(file, base=base, variants={"plain": None})
    return fifo


def reader_waits(fifo: Path) -> FileIO:
    """Block until a run has got to the FIFO; it goes on when what is returned is closed."""
    return FileIO(fifo, "w")


def beside(function: Callable[..., None], *arguments: Any) -> None:
    """Call it in a thread of its own, while this one runs a study."""
    threading.Thread(target=function, args=arguments, daemon=True).start()


def wait_for(text: str, log: Path) -> None:
    """Until a process has written that it heard the signal."""
    give_up = time.monotonic() + 60
    while text not in log.read_text():
        assert time.monotonic() < give_up, log.read_text()
        os.sched_yield()


@pytest.mark.usefixtures("no_figures", "finished")
def test_killed_in_the_middle_it_continues_bit_for_bit(
    once: SimpleNamespace, held: Path, file: Path, output: Path
) -> None:
    study = command(file, "seeds=1")
    with reader_waits(held):
        study.kill()
        study.communicate()
        (run,) = list_runs(output)
        wait_for("stopping after this update", run.folder / "log.txt")
        assert run.status["status"] == "running", "it finishes its update first, with nobody to tell"
    again = budwood.study(file, seeds=1)
    assert sittings(output) == {"grid-plain-s0": 2}
    assert numbers(again) == numbers(once.result)[:1], "the study that nobody killed or held"


def test_ctrl_c_checkpoints_and_the_same_command_goes_on(held: Path, file: Path, output: Path) -> None:
    study = command(file, "seeds=1")
    with reader_waits(held):
        study.send_signal(signal.SIGINT)
        (run,) = list_runs(output)
        wait_for("stopping after this update", run.folder / "log.txt")
    out, err = study.communicate(timeout=120)
    assert study.returncode == 130
    assert "stopping: every run ends its update" in err
    assert [row["status"] for row in json.loads(out)["cells"]] == ["interrupted"]
    assert Checkpoints(run.checkpoints, 1).latest() is not None
    assert budwood.study(file, seeds=1).status == "finished"
    assert sittings(output) == {"grid-plain-s0": 2}


@pytest.mark.parametrize(("patience", "status"), [(60.0, "interrupted"), (0.0, "killed")])
def test_an_error_of_the_study_itself_lets_the_runs_write_their_checkpoints(
    held: Path, file: Path, output: Path, monkeypatch: pytest.MonkeyPatch, patience: float, status: str
) -> None:
    def release(at_step_50: FileIO) -> None:
        with at_step_50:
            if patience:
                wait_for("stopping after this update", list_runs(output)[0].folder / "log.txt")
            else:
                killed.wait()

    def moved(*_: object) -> None:
        with suppress(OSError):  # no run waits there yet
            beside(release, FileIO(os.open(held, os.O_WRONLY | os.O_NONBLOCK), "w"))
            raise RuntimeError("the study broke")

    killed = threading.Event()
    monkeypatch.setattr(studies._Sitting, "moved", moved)
    monkeypatch.setattr(pool, "PATIENCE_SECONDS", patience)
    try:
        with pytest.raises(RuntimeError, match="the study broke"):
            budwood.study(file, seeds=1)
    finally:
        killed.set()
    (run,) = list_runs(output)
    assert run.status["status"] == status
    newest = Checkpoints(run.checkpoints, 1).latest()
    assert newest is not None
    assert int(newest[0].name.removeprefix("step_").split(".")[0]) == (60 if patience else 40)


@pytest.mark.usefixtures("no_figures")
def test_a_run_whose_process_is_killed_fails_and_is_taken_up_again(held: Path, file: Path, output: Path) -> None:
    def kill() -> None:
        with reader_waits(held):
            os.kill(list_runs(output)[0].status["pid"], signal.SIGKILL)

    beside(kill)
    assert budwood.study(file, seeds=1).failed == {"grid-plain-s0": "its process was killed by SIGKILL"}
    beside(lambda: reader_waits(held).close())
    assert budwood.study(file, seeds=1).status == "finished"
    (run,) = list_runs(output)
    assert "continuing from step_" in (run.folder / "log.txt").read_text()


@pytest.mark.usefixtures("no_figures")
def test_a_run_that_somebody_stops_alone_is_told_and_not_taken_for_finished(
    held: Path, file: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        with reader_waits(held):
            (run,) = list_runs(output)
            os.kill(run.status["pid"], signal.SIGTERM)
            wait_for("stopping after this update", run.folder / "log.txt")

    beside(stop)
    assert main(["study", str(file), "seeds=1", "--json"]) == 130
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert (answer["status"], answer["failed"]) == ("interrupted", {})
    told = "grid-plain-s0 was stopped from outside; the same command goes on with it"
    assert told in answer["notes"]
    assert told in said.err
    assert "Continue with: budwood study" in said.err
    assert budwood.study(file, seeds=1).status == "finished"
    assert sittings(output) == {"grid-plain-s0": 2}


def test_two_at_once_are_refused(file: Path, output: Path) -> None:
    folder = output / "grid"
    folder.mkdir(parents=True)
    with tracking.exclusive(folder / LOCK, wait=True), pytest.raises(BudwoodError, match="another process is at work"):
        budwood.study(file)
    assert list_runs(output) == []
    assert not (folder / STUDY_FILE).exists(), "it is the other's to say what lies here"


# ---- before and beside -------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_what_is_there_and_what_is_to_come(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = tmp_path / "nowhere"
    assert main(["study", str(finished), f"output={nowhere}", "--dry-run", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert not nowhere.exists()
    assert (answer["left"], answer["steps"]) == (4, 4 * 90)
    assert main(["study", str(finished), "seeds=3", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:3] for line in out.splitlines()[1:7]] == [
        ["plain", "0", "finished"], ["fast", "0", "finished"], ["plain", "1", "finished"], ["fast", "1", "finished"],
        ["plain", "2", "new"], ["fast", "2", "new"],
    ]  # fmt: skip
    assert "2 of 6 runs to go, at most 180 training steps" in out


def test_the_command_shows_tables_and_copies_them(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", str(finished), "--export", str(tmp_path / "docs")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("finished  grid\n")
    assert "probability" in said.out
    assert "fast than plain" in said.out
    assert "variant  metric      runs" in said.out, "not wrapped where there is no terminal"
    assert "4 of 4 runs were finished before" in said.err
    assert {path.name for path in (tmp_path / "docs").iterdir()} == {
        "study.csv", "summary.csv", "pairs.csv", "curves.svg", "intervals.svg", "profile.svg",
    }  # fmt: skip
    assert main(["study", str(finished), "--only", "slow"]) == 2
    assert "there is no variant 'slow'" in capsys.readouterr().err
    assert main(["study", str(finished), "name=other", "--tables-only"]) == 2
    assert "no run of this study is finished" in capsys.readouterr().err


@pytest.mark.usefixtures("no_figures")
def test_a_cell_says_what_it_cannot_do(finished: Path) -> None:
    """Told on its output and in its log; a file that is no YAML any more damages one run only."""
    run = list_runs(finished.with_name("runs"))[0]
    newest = Checkpoints(run.checkpoints, 1).latest()
    assert newest is not None
    for checkpoint in run.checkpoints.iterdir():
        (checkpoint / "state.json").write_text("{")
    run.write_status(status="interrupted")
    result = budwood.study(finished)
    assert list(result.failed) == [run.run_id]
    assert "every checkpoint is damaged" in result.failed[run.run_id]


def test_notes_of_runs_are_told_once() -> None:
    told = {"a": ["large", "odd", "odd"], "b": ["large"], "c": ["large"], "d": ["not finished"], "old": None}
    cells = [
        SimpleNamespace(
            done=name != "d", run=SimpleNamespace(run_id=name, status={} if notes is None else {"notes": notes})
        )
        for name, notes in told.items()
    ]
    assert studies._notes_of_runs(cells) == ["a and 2 more: large", "a: odd"]  # type: ignore[arg-type]


def test_runs_nest_in_the_studys_own_tracked_run(file: Path, output: Path) -> None:
    from mlflow.tracking import MlflowClient

    base = {**STUDY["base"], "tracking": {"experiment": "grids", "tags": {"by": "test"}, "artifact_megabytes": 0}}
    result = budwood.study(altered(file, base=base, variants={"plain": None}, processes=1), seeds=1)
    folders = [output / "grid", output / "grid" / "grid-plain-s0"]
    (note,) = (note for note in result.notes if "not sent to the tracker" in note)
    assert note.startswith("grid-plain-s0: ")
    assert "export/policy.txt (0 MB), checkpoints/" in note
    assert escape(note) in (folders[0] / "study.html").read_text()
    assert escape(note.removeprefix("grid-plain-s0: ")) in (folders[1] / "report.html").read_text()
    assert all(tracking.finish(folder.resolve(), timeout=300).complete for folder in folders)
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    runs = {
        run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("grids").experiment_id])
    }
    parent, child = runs["grid"], runs["grid-plain-s0"]
    assert result.mlflow_run_id in (None, parent.info.run_id), (
        "None if the tracker was slower than the study's patience"
    )
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.status == child.info.status == "FINISHED"
    assert parent.data.metrics["return/plain/iqm"] == result.summary[0]["iqm"]
    assert parent.data.params["base.trainer.kind"] == "toy"
    assert {"study.html", "study.csv", "summary.csv", "study.yaml", "curves.svg"} <= {
        artifact.path for artifact in client.list_artifacts(parent.info.run_id)
    }
    budwood.study(file, seeds=1)
    assert tracking.finish(folders[0].resolve(), timeout=300).complete
    assert len(client.get_metric_history(parent.info.run_id, "return/plain/iqm")) == 1
    assert len(client.search_runs([parent.info.experiment_id])) == 2


@pytest.mark.usefixtures("finished")
def test_a_cell_is_not_parted_from_its_study() -> None:
    with pytest.raises(ConfigError) as refused:
        budwood.resume("grid-plain-s0", ["budget=500"])
    assert str(refused.value) == (
        "grid-plain-s0: this run belongs to the study grid, which refuses runs of other settings than its own. Change the "
        "study's file, or start a run of your own with init_from=grid-plain-s0."
    )
    with pytest.raises(ConfigError, match="How long it trains is for its study grid to say"):
        budwood.resume("grid-plain-s0")
