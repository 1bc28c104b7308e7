"""The plugin grafted onto TRL's GRPOTrainer in a script of one's own, against the same script with the parts by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import budwood
from budwood.api import BudwoodError, ConfigError
from budwood_lcqa_selector.config import SelectorConfig
from budwood_lcqa_selector.dataset import stage_dataset
from budwood_lcqa_selector.records import write_rows
from budwood_lcqa_selector.stages import StageController, Switch
from budwood_lcqa_selector.worlds import fact_chain

trl = pytest.importorskip("trl")
pytest.importorskip("budwood_trl")

TIMED = {"red": 4, "prompt": "wide", "name": "recall", "max_steps": 4}
WAITING = {**TIMED, "max_steps": None, "patience": 1, "min_delta": 0.1}
TIGHT = {"red": 1, "prompt": "tight", "name": "precision"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graft")
    rows, held_out = ([fact_chain(seed, pool=4, filler=0) for seed in seeds] for seeds in (range(48), range(100, 104)))
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "eval.jsonl", held_out)
    return folder, rows, held_out


def arguments(folder: Path, **more):
    fixed = {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 1,
        "learning_rate": 1e-3,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
    cpu = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    return trl.GRPOConfig(**{**fixed, **quiet, **cpu, **more})


def grafted(toy, files, folder: Path, first=TIMED, **more):
    section = {
        "rows": str(files[0] / "train.jsonl"),
        "eval_rows": str(files[0] / "eval.jsonl"),
        "stages": [first, TIGHT],
    }
    trainer = budwood.graft(trl.GRPOTrainer, {"lcqa_selector": section})
    made = trainer(toy.policy(), args=arguments(folder, **more), processing_class=toy.tokenizer)
    made.train()
    return made


def by_hand(toy, files, folder: Path, first):
    from budwood_lcqa_selector.with_trl import StageTrainerCallback, picker_reward

    config = SelectorConfig.model_validate({"stages": (first, TIGHT)}, strict=False)
    controller = StageController(config.stages)
    made = trl.GRPOTrainer(
        toy.policy(),
        reward_funcs=picker_reward(config),
        args=arguments(folder),
        train_dataset=stage_dataset(files[1], controller, config.prompt),
        eval_dataset=stage_dataset(files[2], controller, config.prompt, role="eval"),
        processing_class=toy.tokenizer,
        callbacks=[StageTrainerCallback(controller, config.monitor)],
    )
    made.train()
    return made, controller


@pytest.mark.parametrize(("first", "why"), [(TIMED, "max_steps"), (WAITING, "plateau")])
def test_a_grafted_script_trains_as_one_that_is_put_together_by_hand(toy, files, tmp_path, first, why):
    """Both ends of a stage: after its steps, and at a plateau of the script's own evaluations."""
    made = grafted(toy, files, tmp_path, first)
    theirs, controller = by_hand(toy, files, tmp_path, first)
    assert controller.switches == [Switch(1, 4, why)]
    history = made.state.log_history
    assert [row["lcqa_selector/switched"] for row in history if "lcqa_selector/switched" in row] == [4.0]
    for (name, one), other in zip(made.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert one.equal(other), name
    rewards = [[row["reward"] for row in one.state.log_history if "reward" in row] for one in (made, theirs)]
    assert rewards[0] == rewards[1]
    assert len(rewards[0]) == 8


def test_loader_processes_of_a_script_are_refused(files, monkeypatch):
    """As one of them sees it; forking this process, which has threads, could hang."""
    import torch

    rows = stage_dataset(files[1], StageController(SelectorConfig().stages))
    assert rows[0]["stage"] == 0
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: SimpleNamespace(num_workers=2))
    with pytest.raises(ConfigError, match="2 loader processes would render prompts"):
        rows[0]


def test_several_processes_are_refused(files, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BudwoodError, match=r"graft: several processes do not work yet.*started 2 of them"):
        budwood.graft(trl.GRPOTrainer, {"lcqa_selector": {"rows": str(files[0] / "train.jsonl")}})
