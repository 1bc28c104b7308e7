"""The plugin in ``budwood run`` on TRL: both stages, what is logged and reported, and resuming."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from budwood.api import BudwoodError
from budwood.testing import check_plugin
from budwood_lcqa_selector.config import SelectorConfig
from budwood_lcqa_selector.records import write_rows
from budwood_lcqa_selector.worlds import fact_chain


def test_contract():
    assert [finding for finding in check_plugin("lcqa_selector") if finding.level != "ok"] == []


def test_importing_the_plugin_is_light():
    heavy = ("torch", "transformers", "trl", "datasets", "mlflow", "bm25s", "langchain_core", "llama_index")
    code = f"import sys, budwood_lcqa_selector.plugin; print(set({heavy}) & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "set()"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"gamma": 1.5}, "less than or equal to 1"),
        ({"mode": "loose"}, "'within', 'paper', 'beyond' or 'none'"),
        ({"stages": []}, "at least 1 item"),
        ({"stages": [{"name": "a", "red": 1, "prompt": "x"}] * 2}, "two stages have the same name"),
        ({"stages": [{"name": "a", "red": -1, "prompt": "x"}]}, "greater than or equal to 0"),
        ({"row": "a.jsonl"}, "Extra inputs are not permitted"),
    ],
)
def test_bad_sections(section, message):
    with pytest.raises(ValidationError, match=message):
        SelectorConfig.model_validate_json(json.dumps(section))


@pytest.fixture(scope="module")
def files(toy, tmp_path_factory):
    pytest.importorskip("trl")
    pytest.importorskip("budwood_trl")
    folder = tmp_path_factory.mktemp("files")
    write_rows(folder / "train.jsonl", [fact_chain(seed, pool=4, filler=0) for seed in range(48)])
    write_rows(folder / "eval.jsonl", [fact_chain(seed, pool=4, filler=0) for seed in range(100, 104)])
    toy.save(folder / "model")
    return folder


def config(files: Path, out: Path, total: int = 8, **trainer):
    stage = {"red": 4, "prompt": "wide", "name": "recall", "max_steps": 4}
    return {
        "name": "picker",
        "seed": 0,
        "device": "cpu",
        "output": str(out),
        "trainer": {
            "kind": "trl",
            "algo": "grpo",
            "model": str(files / "model"),
            "total_steps": total,
            "args": {
                "per_device_train_batch_size": 8,
                "per_device_eval_batch_size": 8,
                "num_generations": 4,
                "max_completion_length": 1,
                "learning_rate": 1e-3,
                "lr_scheduler_type": "constant",
                "logging_steps": 1,
                **trainer,
            },
        },
        "plugins": {
            "lcqa_selector": {
                "rows": str(files / "train.jsonl"),
                "eval_rows": str(files / "eval.jsonl"),
                "stages": [stage, {"red": 1, "prompt": "tight", "name": "precision"}],
            }
        },
        "evaluation": {"every": 2},
        "checkpoint": {"every": 6},
        "tracking": {"enabled": False},
    }


def logged(result) -> dict[tuple[int, str], float]:
    lines = [json.loads(line) for line in Path(result.paths["events"]).read_text().splitlines()]
    return {
        (event["step"], name): value
        for event in lines
        if event["kind"] == "metrics"
        for name, value in event["data"].items()
        if "time" not in name and "runtime" not in name and "per_second" not in name
    }


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    from budwood import run

    return run(config(files, tmp_path_factory.mktemp("whole")))


def test_both_stages_in_one_run(whole):
    numbers = logged(whole)
    assert numbers[4, "lcqa_selector/switched"] == 4
    stages = [value for (_, name), value in sorted(numbers.items()) if name == "train/lcqa_selector/stage"]
    assert stages[:4] == [0, 0, 0, 0]
    assert stages[-2:] == [1, 1]
    assert any(name == "train/lcqa_selector/coverage" and value > 0 for (_, name), value in numbers.items())
    assert any(name == "eval/reward" for _, name in numbers)


def test_report(whole):
    page = Path(whole.paths["report"]).read_text()
    assert "Evidence picking" in page
    assert "switch at 4" in page
    assert "Picks for sample questions" in page
    assert "What is the " in page


def test_resumed_after_the_switch(whole, files, tmp_path):
    from budwood import resume, run

    first = run(config(files, tmp_path, total=6))
    second = resume(first.paths["folder"], ["trainer.total_steps=8"])
    straight, parts = logged(whole), logged(second)
    late = {key: value for key, value in straight.items() if key[0] > 6 and key[1].startswith("train/")}
    assert late
    assert {key: parts[key] for key in late} == late


def test_its_reward_is_weighed_and_the_weights_are_searched_while_the_picker_learns(files, tmp_path):
    """Beside reward_shaping: both bind, the search moves the weights through a switch of stages, and a cut run resumes."""
    pytest.importorskip("budwood_reward_shaping")
    from budwood import resume, run
    from budwood.planning import explain

    def made(folder: str, total: int):
        built = config(files, tmp_path / folder, total=total)
        built["trainer"]["rewards"] = {"think_format_reward": 1.0}
        built["evaluation"] = {"every": None, "episodes": 0}
        built["checkpoint"] = {"every": 2}
        built["plugins"]["reward_shaping"] = {
            "terms": [
                {"name": "evidence", "info": "lcqa_selector.evidence"},
                {"name": "form", "info": "trl.think_format_reward"},
            ],
            "criteria": [
                {"name": "picks", "source": "lcqa_selector.evidence", "stat": "final", "op": ">=", "threshold": 0.5}
            ],
            "weights": {"scale": None, "w_task": 0.0},
            "outer": {"steps": 3, "inner_steps": 2, "estimator": "score", "samples": 2, "episodes": 4},
        }
        return built

    bound = {(item.plugin, item.kind) for item in explain(made("explained", 8)).bindings}
    assert {("lcqa_selector", "build_dataset"), ("lcqa_selector", "completion_rewards")} <= bound
    assert {("reward_shaping", "reward_terms"), ("reward_shaping", "reward_combination")} <= bound
    whole = run(made("whole", 10))
    assert len({value for (_, name), value in logged(whole).items() if name == "reward_shaping/w/evidence"}) > 1
    assert (4, "lcqa_selector/switched") in logged(whole)
    first = run(made("parts", 6))
    second = resume(first.paths["folder"], ["trainer.total_steps=10"])
    late = {key: value for key, value in logged(whole).items() if key[0] > 6 and "time" not in key[1]}
    assert late
    assert {key: logged(second).get(key) for key in late} == late


def waiting(files: Path, out: Path, **evaluation):
    """Its first stage waits for a plateau; the reward is above 0.1 and does not gain as much again."""
    made = config(files, out)
    made["plugins"]["lcqa_selector"]["stages"][0] |= {"max_steps": None, "patience": 1, "min_delta": 0.1}
    made["evaluation"] |= evaluation
    return made


def test_a_plateau_ends_the_first_stage(files, tmp_path):
    """Evaluations at 2 and at 4: the second brings no gain."""
    from budwood import run

    numbers = logged(run(waiting(files, tmp_path)))
    assert {key: value for key, value in numbers.items() if key[1] == "lcqa_selector/switched"} == {
        (4, "lcqa_selector/switched"): 4
    }
    stages = [value for (_, name), value in sorted(numbers.items()) if name == "train/lcqa_selector/stage"]
    assert (stages[0], stages[-1]) == (0, 1)


@pytest.mark.parametrize("lacking", ["rows", {"every": 20_000}, {"every": None}, {"episodes": 0}])
def test_a_stage_that_nothing_ends_is_refused_at_set_up(files, tmp_path, lacking):
    from budwood import run

    made = waiting(files, tmp_path, **({} if lacking == "rows" else lacking))
    if lacking == "rows":
        del made["plugins"]["lcqa_selector"]["eval_rows"]
    with pytest.raises(BudwoodError, match="'recall' would never end"):
        run(made)


def test_an_evaluation_without_the_monitored_number_ends_the_run(files, tmp_path):
    from budwood import run

    made = waiting(files, tmp_path)
    made["plugins"]["lcqa_selector"]["monitor"] = "rewrad"
    with pytest.raises(BudwoodError, match=r"(?s)'rewrad' of evaluations.* reward"):
        run(made)


def test_loader_processes_are_refused(files, tmp_path):
    from budwood import run

    with pytest.raises(BudwoodError, match="2 loader processes"):
        run(config(files, tmp_path, dataloader_num_workers=2))


def test_a_bad_line_is_named(files, tmp_path):
    from budwood import run

    rows = (files / "train.jsonl").read_text().splitlines()
    (tmp_path / "bad.jsonl").write_text("\n".join([rows[0], '{"qid": 1}', rows[1]]))
    made = config(files, tmp_path)
    made["plugins"]["lcqa_selector"]["rows"] = str(tmp_path / "bad.jsonl")
    with pytest.raises(BudwoodError, match=r"bad.jsonl, line 2"):
        run(made)


def test_no_row_speaks_with_the_tokenizers_own_tokens(files, toy, tmp_path):
    """Whatever they are called: the policy's are read from its tokenizer."""
    from budwood.planning import explain

    row = fact_chain(1, pool=4, filler=0)
    told = row.passages[0].model_copy(update={"text": "Berlin.<eos><pad> p9"})
    row = row.model_copy(update={"question": "Who?<eos>", "passages": (told, *row.passages[1:])})
    write_rows(tmp_path / "marked.jsonl", [row])
    made = config(files, tmp_path)
    made["plugins"]["lcqa_selector"]["rows"] = str(tmp_path / "marked.jsonl")
    (shown,) = explain(made).contributions.wrap_dataset(None, "train")
    text = shown["prompt"][-1]["content"]
    assert "Berlin.< eos>< pad> p9" in text
    assert "Question: Who?< eos>" in text
    control = set(toy.tokenizer.convert_tokens_to_ids(["<eos>", "<pad>"]))
    assert not control & set(toy.tokenizer(text)["input_ids"])
