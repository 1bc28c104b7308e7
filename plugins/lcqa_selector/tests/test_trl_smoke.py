"""Bare TRL on a tiny random Llama: both stages in one run, rows scored with the stage they carry, and resuming."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from budwood.api import CheckpointError, ConfigError
from budwood_lcqa_selector.config import SelectorConfig
from budwood_lcqa_selector.dataset import stage_dataset
from budwood_lcqa_selector.parsing import MALFORMED, parse
from budwood_lcqa_selector.prompts import TIGHT, WIDE
from budwood_lcqa_selector.records import PoolRow
from budwood_lcqa_selector.stages import PRECISION, RECALL, StageController, Switch
from budwood_lcqa_selector.worlds import fact_chain

trl = pytest.importorskip("trl")
torch = pytest.importorskip("torch")

CONFIG = SelectorConfig(stages=(RECALL.model_copy(update={"max_steps": 10}), PRECISION), words=12)
GENERATIONS, STEPS = 4, 20


def rows(count: int = 48) -> list[PoolRow]:
    """One epoch is more than the run: TRL's sampler shuffles the epochs of a resumed run anew."""
    return [fact_chain(seed, hops=2, pool=4, filler=0) for seed in range(count)]


class Watching:
    """The reward function, with every row that it was given written down."""

    __name__ = "watching"

    def __init__(self, controller: StageController) -> None:
        from budwood_lcqa_selector.with_trl import picker_reward

        self.inner, self.controller = picker_reward(CONFIG), controller
        self.seen: list[dict] = []

    def __call__(self, prompts, completions, **rest) -> Sequence[float | None]:
        rewards = self.inner(prompts, completions, **rest)
        for i, reward in enumerate(rewards):
            self.seen.append(
                {
                    "system": prompts[i][0]["content"],
                    "text": completions[i][0]["content"],
                    "reward": reward,
                    "now": self.controller.index,
                    "step": rest["trainer_state"].global_step,
                    **{name: rest[name][i] for name in ("stage", "role", "gold_sets", "pool_ids", "qid")},
                }
            )
        return rewards


def trained(toy, folder: Path, *, steps: int = STEPS, resume: Path | None = None, config=CONFIG, **extra):
    from budwood_lcqa_selector.with_trl import StageTrainerCallback

    controller = StageController(config.stages)
    reward = Watching(controller)
    arguments = trl.GRPOConfig(
        **{
            "output_dir": str(folder),
            "max_steps": steps,
            "per_device_train_batch_size": GENERATIONS * 2,
            "per_device_eval_batch_size": GENERATIONS * 2,
            "num_generations": GENERATIONS,
            "max_completion_length": 1,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "beta": 0.0,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 5,
            "save_strategy": "steps",
            "save_steps": 12,
            "report_to": "none",
            "disable_tqdm": True,
            "seed": 0,
            **extra,
        }
    )
    trainer = trl.GRPOTrainer(
        toy.policy(),
        reward_funcs=reward,
        args=arguments,
        train_dataset=stage_dataset(rows(), controller, config.prompt),
        eval_dataset=stage_dataset(rows(2), controller, config.prompt, role="eval"),
        processing_class=toy.tokenizer,
        callbacks=[StageTrainerCallback(controller, config.monitor)],
    )
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return trainer, controller, reward


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    return trained(toy, tmp_path_factory.mktemp("whole"))


def test_every_row_is_scored_with_the_stage_it_was_written_for(whole):
    """The prompt, the column and the reward agree in every row, also in those fetched before the switch and scored after."""
    _, _, reward = whole
    for row in reward.seen:
        stage = CONFIG.stages[row["stage"]]
        assert row["system"].endswith((WIDE, TIGHT)[row["stage"]])
        picked, gold = parse(row["text"], row["pool_ids"]), json.loads(row["gold_sets"])[0]
        if not picked.valid:
            assert row["reward"] == -1
            continue
        size, covered = len(picked.ids), len({*picked.ids} & {*gold}) / 2
        fine = 0.5 * max(0, size - 2) / (2 + stage.red)
        assert row["reward"] == pytest.approx(0 if size > 2 + stage.red else covered - fine)


def test_rows_fetched_ahead_carry_the_stage_before(whole):
    """What makes the column necessary: after the switch a batch of the first stage is still scored."""
    _, controller, reward = whole
    assert [(switch.index, switch.step) for switch in controller.switches] == [(1, 10)]
    train = [row for row in reward.seen if row["role"] == "train"]
    assert [row for row in train if row["now"] == 1 and row["stage"] == 0]
    assert {row["stage"] for row in train if row["step"] >= 15} == {1}
    assert {row["stage"] for row in train if row["step"] < 10} == {0}


def test_groups_share_one_permutation(whole):
    _, _, reward = whole
    train = [row for row in reward.seen if row["role"] == "train"]
    assert len(train) == STEPS * GENERATIONS * 2
    for start in range(0, len(train), GENERATIONS):
        group = train[start : start + GENERATIONS]
        assert len({(row["qid"], row["gold_sets"], row["stage"]) for row in group}) == 1


def test_parts_of_the_reward_are_logged(whole):
    trainer, _, reward = whole
    logged = {name for entry in trainer.state.log_history for name in entry}
    parts = {"coverage", "size", "over_select", "invalid", "stage", "kept_tokens"} | {f"invalid/{k}" for k in MALFORMED}
    assert {f"lcqa_selector/{part}" for part in parts} <= logged
    assert {"eval_reward", "rewards/watching/mean"} <= logged
    assert any(row["reward"] > 0 for row in reward.seen), "a random policy writes valid answers"
    assert len(reward.inner.score.samples) == 2


def test_resumed_after_the_switch(whole, toy):
    """From the checkpoint at 12, after the switch at 10: the same stage, counters, rows, rewards and parameters."""
    straight, controller, reward = whole
    folder = Path(straight.args.output_dir)
    resumed, again, seen = trained(toy, folder, resume=folder / "checkpoint-12")
    assert again.state_dict() == controller.state_dict()
    assert {row["stage"] for row in seen.seen} == {1}
    assert [row for row in reward.seen if row["step"] >= 12] == seen.seen
    for (name, one), other in zip(straight.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert one.equal(other), name


def test_a_checkpoint_without_its_stage_is_refused(toy, tmp_path):
    trained(toy, tmp_path, steps=1, save_steps=1, eval_strategy="no")
    (tmp_path / "checkpoint-1" / "stage_state.json").unlink()
    with pytest.raises(CheckpointError, match="stage of the run cannot be read"):
        trained(toy, tmp_path, steps=2, resume=tmp_path / "checkpoint-1", eval_strategy="no")


def test_loader_processes_are_refused(toy, tmp_path):
    with pytest.raises(ConfigError, match="2 loader processes"):
        trained(toy, tmp_path, steps=1, dataloader_num_workers=2, eval_strategy="no")


PLATEAU = SelectorConfig(stages=(RECALL.model_copy(update={"patience": 1, "min_delta": 0.2}), PRECISION), words=12)


def test_a_plateau_ends_the_first_stage(toy, tmp_path):
    """Evaluations at 2 and at 4; the reward is above 0.2 and does not gain as much again."""
    _, controller, reward = trained(toy, tmp_path, steps=7, config=PLATEAU, eval_steps=2, save_strategy="no")
    assert controller.switches == [Switch(1, 4, "plateau")]
    assert {row["stage"] for row in reward.seen if row["role"] == "train"} == {0, 1}


def test_a_stage_that_nothing_ends_is_refused(toy, tmp_path):
    with pytest.raises(ConfigError, match="'recall' would never end"):
        trained(toy, tmp_path, steps=1, config=PLATEAU, eval_strategy="no")


@pytest.mark.slow
def test_the_reward_moves_the_policy(toy, tmp_path):
    """Sixty steps under TRL's own GRPO: fewer malformed answers, more reward. Ids being shuffled, there is nothing to learn
    but the form and how many to pick.

    pytest -m slow plugins/lcqa_selector/tests/test_trl_smoke.py
    """
    rare = {"eval_strategy": "no", "save_strategy": "no", "logging_steps": 60}
    _, _, reward = trained(toy, tmp_path, steps=60, learning_rate=1e-2, per_device_train_batch_size=32, **rare)
    steps = [[row for row in reward.seen if low <= row["step"] < low + 15] for low in (0, 45)]
    malformed = [sum(row["reward"] == -1 for row in rows) / len(rows) for rows in steps]
    means = [sum(row["reward"] for row in rows) / len(rows) for rows in steps]
    print(f"malformed {malformed[0]:.2f} -> {malformed[1]:.2f}, reward {means[0]:.2f} -> {means[1]:.2f}")
    assert malformed[1] < malformed[0] / 2
    assert means[1] > means[0] + 0.2
