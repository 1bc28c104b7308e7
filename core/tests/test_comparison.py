"""Runs side by side: what is the same in all, what differs, and errors that say what to write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import budwood
from budwood.api import ConfigError
from budwood.cli import main
from budwood.folder import RunFolder, list_runs
from budwood.journal import FILE, Journal


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """a-s0 and b-s1: different seeds, rates and returns; b logs one metric that a does not."""
    monkeypatch.setenv("BUDWOOD_OUTPUT", str(tmp_path))
    for index, name in enumerate(("a-s0", "b-s1")):
        run = RunFolder(tmp_path / name)
        run.create()
        run.write_status(status="finished", started=index)
        run.config_file.write_text(
            f"name: {name}\nseed: {index}\ntrainer: {{kind: x, args: {{rate: 0.{index}}}}}\noutput: {index}\n"
        )
        events = Journal(run.folder)
        for step in range(0, 100, 20):
            events.metrics({"eval/return_mean": step * (index + 1.0), "train/loss": 1.0 / (step + 1)}, step)
        if index:
            events.metrics({"only/b": 1.0}, 80)
        events.close()
    return ["a-s0", "b-s1"]


def test_last_numbers_and_settings_that_differ(two: list[str], tmp_path: Path) -> None:
    found = budwood.compare(two)
    assert found.runs == two
    assert found.metrics[0] == {"metric": "eval/return_mean", "a-s0": 80.0, "b-s1": 160.0}
    assert [row["metric"] for row in found.metrics] == ["eval/return_mean", "train/loss"]
    assert found.settings == [
        {"setting": "seed", "a-s0": "0", "b-s1": "1"},
        {"setting": "trainer.args.rate", "a-s0": "0.0", "b-s1": "0.1"},
    ]
    assert found.page == tmp_path / "compare.html"
    assert found.page.read_text().count("<figure>") == 2


def test_the_command_draws_what_is_asked_for(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "mine.html"
    assert main(["compare", *two, "--metric", "train/loss", "--to", str(page), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["page"] == str(page)
    assert page.read_text().count("<figure>") == 1
    assert "trainer.args.rate" in said.err


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("only/b", "a-s0: this run never logged 'only/b'"),
        ("train/los", "Did you mean 'train/loss'?"),
    ],
)
def test_a_metric_that_one_run_lacks_is_named(two: list[str], metric: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        budwood.compare(two, [metric])
    assert message in str(caught.value)


def test_runs_without_a_metric_in_common_are_said_to_have_none(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b-s1" / FILE).unlink()
    events = Journal(tmp_path / "b-s1")
    events.metrics({"only/b": 1.0}, 80)
    events.close()
    assert main(["compare", *two]) == 0
    out = capsys.readouterr().out
    assert "these runs have no metric in common" in out
    assert "trainer.args.rate" in out, "what they differ in is told all the same"
    assert "These runs have no metric in common." in (tmp_path / "compare.html").read_text()


def test_one_run_is_no_comparison(two: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        budwood.compare(["a-s0", str(list_runs(tmp_path)[0].folder)])
