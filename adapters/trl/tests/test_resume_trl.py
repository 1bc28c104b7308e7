"""A run that was cut at any of its boundaries and resumed ends as if it had never been cut, bit for bit on CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Nowhere, numbers, parameters, same

from budwood.api import Contributions, StateTree
from budwood.checkpoint import Checkpoints
from budwood.rhythm import Rhythm
from budwood.session import Session
from budwood_trl.state import KEYS
from budwood_trl.trainer import TRLTrainer

STEPS = 9
LORA = {"trainer": {"peft": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "lora_dropout": 0.1}}}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "grpo": ("grpo", {}, {}),
    "grpo in hand": ("grpo", {"steps_per_generation": 2, "num_iterations": 2, "loss_type": "dapo"}, {}),
    "grpo accumulated": (
        "grpo",
        {"gradient_accumulation_steps": 2, "beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2},
        {},
    ),
    "grpo epochs": ("grpo", {"per_device_train_batch_size": 16}, {}),  # four steps an epoch
    "rloo": ("rloo", {"steps_per_generation": 2}, {}),
    "dpo": ("dpo", {}, {}),
    "sft": ("sft", {"gradient_accumulation_steps": 2, "logging_steps": 2}, {}),
    "sft lora": ("sft", {}, LORA),
    "reward": ("reward", {}, {}),
    "kto": ("kto", {}, {}),
}


class Files:
    """Checkpoints of a session as a run writes them, a file tree each."""

    def __init__(self, made: TRLTrainer, folder: Path) -> None:
        self.made, self.store, self.paths = made, Checkpoints(folder, 99), {}

    def save(self, session: Session) -> Path:
        if session.steps not in self.paths:
            tree = {"trainer": self.made.state_dict(), "session": session.state_dict()}
            self.paths[session.steps] = self.store.save(session.steps, tree, {})
        return self.paths[session.steps]

    def load(self, step: int) -> StateTree:
        return self.store.load(self.paths[step])[0]


def run(made: TRLTrainer, files: Files, restored: StateTree | None = None) -> Nowhere:
    memory = Nowhere()
    session = Session(
        made, Contributions(), memory, memory, Rhythm(checkpoint_every=1), files.save, restored and restored["session"]
    )  # fmt: skip
    made.fit(session)
    return memory


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(case: str, trainer: Any, tmp_path: Path) -> None:
    algo, args, sections = CASES[case]
    whole = trainer(algo, steps=STEPS, sections=sections, **args)
    files = Files(whole, tmp_path / "whole")
    all_records = run(whole, files)
    for cut in (1, 4, 7):
        again = trainer(algo, steps=STEPS, sections=sections, **args)
        saved = files.load(cut)
        torch.manual_seed(cut)  # what a new process draws from is not what the old one did
        assert again.load_state_dict(saved["trainer"]) == []
        records = run(again, Files(again, tmp_path / f"again-{cut}"), saved)
        assert same(parameters(again.native), parameters(whole.native)), f"cut at {cut}"
        rest = [(step, row) for step, row in all_records.records if step > cut]
        assert [step for step, _ in records.records] == [step for step, _ in rest]
        assert numbers([row for _, row in records.records]) == numbers([row for _, row in rest])


def test_a_state_that_lacks_a_part_is_refused_before_training(trainer: Any, tmp_path: Path) -> None:
    whole = trainer("sft", steps=2)
    run(whole, Files(whole, tmp_path))
    saved = whole.state_dict()
    assert set(saved) == {*KEYS, "first", "micro_batches"}
    for key in (*KEYS, "first"):
        with pytest.raises(KeyError, match=key):
            trainer("sft", steps=2).load_state_dict({k: v for k, v in saved.items() if k != key})


def test_a_run_that_is_given_more_steps_follows_the_longer_schedule_at_once(trainer: Any, tmp_path: Path) -> None:
    """Its last rate was 0: with it the first new step would teach nothing."""
    short = trainer("sft", steps=2)
    files = Files(short, tmp_path / "short")
    run(short, files)
    longer = trainer("sft", steps=4)
    saved = files.load(2)
    (note,) = longer.load_state_dict(saved["trainer"])
    assert "from here on it is that of 4" in note
    later = Files(longer, tmp_path / "longer")
    records = run(longer, later, saved).records
    before, after = (store.load(step)["trainer"]["policy"] for store, step in ((files, 2), (later, 3)))
    assert max(float((after[name] - before[name]).abs().max()) for name in before) > 1e-3
    rates = [row["train/learning_rate"] for _, row in records if "train/learning_rate" in row]
    assert rates == pytest.approx([1e-2 * 2 / 4, 1e-2 * 1 / 4])
