"""budwood lcqa as a person types it: what is printed, written, resumed and refused."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from budwood.cli import main
from budwood_lcqa_selector import commands
from budwood_lcqa_selector.answer_cache import AnswerCache
from budwood_lcqa_selector.records import read_rows, write_rows
from budwood_lcqa_selector.worlds import fact_chain

DATA = Path(os.environ.get("BUDWOOD_DATA", "")) / "lcqa"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="BUDWOOD_DATA names no folder with lcqa/")


@pytest.fixture
def worlds(tmp_path):
    path = tmp_path / "worlds.jsonl"
    write_rows(path, [fact_chain(seed, hops=1 + seed % 3, pool=8) for seed in range(12)])
    return path


@pytest.fixture
def budwood(capsys):
    def call(*words, code=0):
        assert main(["lcqa", *map(str, words)]) == code
        return capsys.readouterr()

    return call


def answer(printed):
    return json.loads(printed.out.splitlines()[-1])


def test_help_teaches(budwood):
    text = budwood("--help").out
    for name in ("pool", "rewrite", "mine", "train", "evaluate", "pick"):
        assert f"\n  {name}" in text
        assert f"budwood lcqa {name} " in budwood(name, "--help").out


@pytest.mark.parametrize("page", ["plugins/lcqa_selector/README.md", "docs/methods/lcqa_selector.md"])
def test_tables_list_every_command(page):
    text = (Path(__file__).parents[3] / page).read_text()
    listed = re.findall(r"^\| `budwood lcqa (\w+)` \|", text, re.MULTILINE)
    assert sorted(listed) == commands.command.list_commands(None)


@pytest.mark.parametrize(
    "words",
    [
        ("mine", "DATA", "--generator", "symbolic"),
        ("pool", "DATA"),
        ("rewrite", "DATA", "--generator", "nowhere"),
        ("train", "DATA"),
        ("train", "OTHER", "--held-out", "DATA"),
        ("evaluate", "DATA", "--no-answers", "--method", "bm25:2"),
        ("evaluate", "OTHER", "--validation", "DATA", "--no-answers", "--method", "threshold"),
    ],
)
def test_what_is_read_is_not_overwritten(budwood, worlds, tmp_path, words):
    other = tmp_path / "other.jsonl"
    other.write_bytes(worlds.read_bytes())
    (tmp_path / "link.jsonl").symlink_to(worlds)
    given = [{"DATA": worlds, "OTHER": other}.get(word, word) for word in words]
    before = worlds.read_bytes()
    for out in (worlds, tmp_path / "link.jsonl"):
        said = budwood(*given, "--out", out, code=2)
        assert f"--out {out} would overwrite what is read from {worlds}" in said.err
        assert worlds.read_bytes() == before
    assert not list(tmp_path.glob("*.sqlite"))


def test_help_imports_no_model_library():
    code = "import sys; from budwood.cli import main; main(['lcqa', '--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stderr.strip("[]\n").replace("'", "").split(", ")}
    assert "budwood_lcqa_selector" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "trl", "bm25s", "mlflow", "sentence_transformers"})


def test_mine_and_mine_again(budwood, worlds, tmp_path):
    out = tmp_path / "mined.jsonl"
    words = ["mine", worlds, "--generator", "symbolic", "--strategy", "quickxplain", "--out", out, "--json"]
    first = answer(budwood(*words))
    assert first["outcomes"] == {"mined": 12}
    assert first["mean_set_size"] == 2.0
    assert first["made"]["calls"] == first["calls"] + first["reasked"]
    gold = {row.qid: set(row.gold_sets[0]) for row in read_rows(worlds)}
    assert {row.qid: set(row.gold_sets[0]) for row in read_rows(out)} == gold
    written = out.read_bytes()
    again = answer(budwood(*words))
    assert again["made"]["calls"] == 0
    assert out.read_bytes() == written
    with AnswerCache(tmp_path / "mined.jsonl.answers.sqlite") as cache:
        assert cache.count() == first["made"]["calls"]


def test_mine_says_what_became_of_the_questions(budwood, worlds, tmp_path):
    said = budwood("mine", worlds, "--generator", "extractive", "--out", tmp_path / "m.jsonl").out
    assert "not answered from all candidates together: dropped" in said
    assert "calls made, 0 answers known before" in said
    few = budwood(
        "mine", worlds, "--generator", "symbolic", "--limit", 3, "--votes", 3, "--out", tmp_path / "v.jsonl"
    ).out
    assert "3 rows in" in few


def test_ctrl_c_keeps_the_answers(budwood, worlds, tmp_path, monkeypatch):
    from budwood_lcqa_selector.worlds import SymbolicGenerator

    plain = SymbolicGenerator.answer
    made = []

    def interrupted(self, passages, question):
        made.append(question)
        if len(made) == 20:
            raise KeyboardInterrupt
        return plain(self, passages, question)

    monkeypatch.setattr(SymbolicGenerator, "answer", interrupted)
    out = tmp_path / "m.jsonl"
    words = ["mine", worlds, "--generator", "symbolic", "--reask", 0, "--out", out]
    printed = budwood(*words, code=130)
    assert "19 answers are kept in" in printed.err
    assert not out.exists()
    rest = answer(budwood(*words, "--json"))
    assert rest["made"]["calls"] == rest["calls"] - 19


def test_pool_then_evaluate(budwood, worlds, tmp_path):
    pools, table = tmp_path / "pools.jsonl", tmp_path / "table.csv"
    pooled = answer(budwood("pool", worlds, "--size", 4, "--out", pools, "--json"))
    assert pooled["mean_size"] == 4.0
    assert 0.3 < pooled["pool_recall"] < 1.0
    said = budwood(
        "evaluate", pools, "--generator", "symbolic", "--method", "bm25:2", "--method", "oracle", "--out", table
    )
    for word in ("12 questions", "bm25:2", "oracle", "precision", "right"):
        assert word in said.out
    rows = {(row["method"], row["metric"]): row for row in csv.DictReader(table.open())}
    assert float(rows["oracle", "evidence_recall"]["mean"]) == pytest.approx(pooled["pool_recall"], abs=1e-4)
    assert rows["oracle", "accuracy"]["mean"] == rows["oracle", "covered"]["mean"]
    assert int(rows["bm25:2", "accuracy"]["n"]) == 12
    again = tmp_path / "again.csv"
    budwood("evaluate", pools, "--generator", "symbolic", "--method", "bm25:2", "--method", "oracle", "--out", again)
    assert again.read_bytes() == table.read_bytes()


def test_sizes_have_intervals_too(budwood, worlds):
    said = budwood("evaluate", worlds, "--no-answers", "--method", "full").out.splitlines()[1]
    assert said.split()[1] == "8.0±0.0"
    assert re.fullmatch(r"\d+\.\d±\d+\.\d", said.split()[2])


@pytest.fixture
def injected(budwood, worlds, tmp_path):
    path = tmp_path / "train.jsonl"
    budwood("mine", worlds, "--generator", "symbolic", "--size", 2, "--out", path)
    assert any(row.injected_ids for row in read_rows(path))
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["pool", "{injected}", "--out", "{out}"],
        ["pool", "{injected}", "--out", "{out}", "--chunker", "window", "--chunk-tokens", "4"],
        ["evaluate", "{injected}", "--no-answers"],
        ["evaluate", "{worlds}", "--no-answers", "--validation", "{injected}", "--method", "threshold"],
        ["mine", "{injected}", "--out", "{out}", "--chunker", "window", "--chunk-tokens", "4"],
        ["mine", "{injected}", "--out", "{out}", "--evaluation"],
    ],
)
def test_pools_with_gold_put_in_are_refused(budwood, worlds, injected, tmp_path, words):
    places = {"worlds": worlds, "injected": injected, "out": tmp_path / "out.jsonl"}
    printed = budwood(*(word.format(**places) for word in words), code=2)
    assert "its pool has gold put in that retrieval missed" in printed.err
    assert "lcqa mine --evaluation, puts nothing in" in printed.err
    assert not (tmp_path / "out.jsonl").exists()


def test_rows_mined_for_evaluation_are_evaluated(budwood, worlds, tmp_path):
    out = tmp_path / "held_out.jsonl"
    words = ["mine", worlds, "--generator", "symbolic", "--size", 2, "--evaluation", "--out", out, "--json"]
    mined = answer(budwood(*words))
    assert mined["injected_share"] == 0.0
    found = answer(budwood("evaluate", out, "--no-answers", "--method", "oracle", "--json"))
    assert found["methods"]["oracle"]["evidence_recall"]["mean"] == pytest.approx(mined["mean_pool_recall"])
    assert mined["mean_pool_recall"] < 1.0


@pytest.mark.parametrize("command", ["mine", "evaluate"])
def test_each_endpoint_has_its_own_key_and_width(budwood, worlds, tmp_path, monkeypatch, command):
    made = []

    def endpoint(*place, **options):
        made.append((*place, options))
        if len(made) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("budwood_models.Endpoint", endpoint)
    words = [command, worlds, "--generator", "http://a/v1#m", "--judge", "http://b/v1#n", "--concurrency", 3]
    budwood(*words, "--key-env", "A_KEY", "--out", tmp_path / "x", code=130)
    assert made == [
        ("http://a/v1", "m", {"key_env": "A_KEY", "concurrency": 3}),
        ("http://b/v1", "n", {"key_env": None, "concurrency": 3}),
    ]
    made.clear()
    budwood(*words, "--key-env", "A_KEY", "--judge-key-env", "B_KEY", "--out", tmp_path / "x", code=130)
    assert [options["key_env"] for _, _, options in made] == ["A_KEY", "B_KEY"]


def test_at_one_budget_no_pick_is_larger(budwood, worlds):
    found = answer(
        budwood("evaluate", worlds, "--no-answers", "--budget", 60, "--method", "full", "--method", "random", "--json")
    )
    assert found["budget"] == 60
    for estimates in found["methods"].values():
        assert 30 < estimates["tokens"]["mean"] <= 60
        assert "accuracy" not in estimates


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["mine", "nowhere.jsonl", "--out", "x"], 2, "'nowhere.jsonl' does not exist"),
        (["mine", "{bad}", "--out", "{out}"], 2, "bad.jsonl, line 2: this line is no JSON"),
        (["pool", "{bad}", "--out", "{out}"], 2, "bad.jsonl, line 2: this line is no JSON"),
        (["evaluate", "{bad}", "--no-answers"], 2, "bad.jsonl, line 2: this line is no JSON"),
        (["mine", "{worlds}"], 2, "Missing option '--out'"),
        (["mine", "{worlds}", "--out", "x", "--votes", "2"], 2, "a majority needs an odd number"),
        (["mine", "{worlds}", "--out", "x", "--format", "csv"], 2, "'csv' is not one of"),
        (["evaluate", "{worlds}", "--method", "bm52"], 1, "no method 'bm52'"),
        (["mine", "{worlds}", "--out", "{out}", "--generator", "http://a/v1"], 2, "this address names no model"),
        (["evaluate", "{worlds}", "--judge", "http://a/v1#"], 2, "this address names no model"),
        (["dig"], 2, "No such command 'dig'"),
    ],
)
def test_bad_use_is_explained(budwood, worlds, tmp_path, words, code, said):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(worlds.read_text().splitlines()[0] + "\n{oops\n")
    places = {"bad": bad, "worlds": worlds, "out": tmp_path / "out.jsonl"}
    printed = budwood(*(word.format(**places) for word in words), code=code)
    assert said in printed.err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["pool", "--out", "{out}"],
        ["mine", "--out", "{out}"],
        ["evaluate", "--no-answers", "--method", "full"],
    ],
)
def test_records_that_are_left_out_are_counted(budwood, tmp_path, words):
    passages = [{"id": f"p{i}", "title": "", "text": f"Ann works at {name}."} for i, name in enumerate(("Bolt", "Cy"))]
    shared = {"question": "Where does Ann work?", "answers": ["Bolt"], "gold_ids": ["p0"], "passages": passages}
    records = [{"qid": str(i), "gold_certain": i != 1, **shared} for i in range(3)]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    words = [word.format(out=tmp_path / "out.jsonl") for word in words]
    printed = budwood(words[0], path, "--format", "shipped", *words[1:], "--json")
    assert f"1 record of {path} left out, for the reason given in a warning" in printed.err
    assert answer(printed)["left_out"] == 1
    assert answer(printed)["questions"] == 2


@needs_data
def test_real_questions_with_the_extractive_generator(budwood, tmp_path):
    """A regression number, not a quality claim: how often one sentence answers, and how often it stands in a gold passage."""
    found = answer(
        budwood(
            "mine",
            DATA / "hotpotqa_distractor_100.jsonl",
            "--format",
            "shipped",
            "--out",
            tmp_path / "m.jsonl",
            "--json",
        )
    )
    assert found["outcomes"] == {"insufficient": 85, "mined": 15}
    gold = {}
    for line in (DATA / "hotpotqa_distractor_100.jsonl").read_text().splitlines():
        gold[json.loads(line)["qid"]] = set(json.loads(line)["gold_ids"])
    mined = list(read_rows(tmp_path / "m.jsonl"))
    assert {len(row.gold_sets[0]) for row in mined} == {1}
    assert sum(set(row.gold_sets[0]) <= gold[row.qid] for row in mined) == 14
