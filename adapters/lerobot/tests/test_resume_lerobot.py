"""A run that was cut at any of its boundaries and resumed ends as if it had never been cut, bit for bit on CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from robots import NOD, Nowhere, numbers, parameters, same

from budwood.api import CheckpointError, Contributions, Run, RunCallback, StateTree, hookimpl
from budwood.checkpoint import Checkpoints
from budwood.rhythm import Rhythm
from budwood.session import Session
from budwood_lerobot.trainer import OfflineTrainer

STEPS = 7
CUTS = (2, 5, 6)
"""Amid the first epoch, at its end, and after it."""
SCHEDULE = {
    "use_policy_training_preset": False,
    "optimizer": {"type": "sgd", "lr": 0.01, "momentum": 0.9},
    "scheduler": {"type": "cosine_decay_with_warmup", "num_warmup_steps": 2, "num_decay_steps": 6, "peak_lr": 0.01,
                  "decay_lr": 0.001},
}  # fmt: skip
TRANSFORMS = {"image_transforms": {"enable": True}}
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "act, log every 4, random transforms": ("act", {"log_freq": 4}, TRANSFORMS),
    "diffusion": ("diffusion", {}, {}),
    "optimiser and schedule of its own": (NOD, SCHEDULE, {}),
}


class Files:
    """Checkpoints of a session as a run writes them, a file tree each."""

    def __init__(self, made: OfflineTrainer, folder: Path) -> None:
        self.made, self.store, self.paths = made, Checkpoints(folder, 99), {}

    def save(self, session: Session) -> Path:
        if session.steps not in self.paths:
            tree = {"trainer": self.made.state_dict(), "session": session.state_dict()}
            self.paths[session.steps] = self.store.save(session.steps, tree, {})
        return self.paths[session.steps]

    def load(self, step: int) -> StateTree:
        return self.store.load(self.paths[step])[0]


def run(made: OfflineTrainer, files: Files, restored: StateTree | None = None) -> Nowhere:
    memory = Nowhere()
    session = Session(
        made, Contributions(), memory, memory, Rhythm(checkpoint_every=1), files.save, restored and restored["session"]
    )
    made.fit(session)
    return memory


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(case: str, trainer: Any, tmp_path: Path) -> None:
    kind, args, rows = CASES[case]
    whole = trainer(kind, steps=STEPS, rows=rows, **args)
    files = Files(whole, tmp_path / "whole")
    all_records = run(whole, files)
    for cut in CUTS:
        again = trainer(kind, steps=STEPS, rows=rows, **args)
        saved = files.load(cut)
        assert again.load_state_dict(saved["trainer"]) == []
        torch.manual_seed(cut)  # what a new process draws from is not what the old one did
        records = run(again, Files(again, tmp_path / f"again-{cut}"), saved)
        assert same(parameters(again.native), parameters(whole.native)), f"cut at {cut}"
        rest = [(step, numbers(row)) for step, row in all_records.records if step > cut]
        assert [(step, numbers(row)) for step, row in records.records] == rest


def test_random_transforms_in_workers_are_said_to_begin_anew(trainer: Any) -> None:
    made = trainer("act", rows=TRANSFORMS, num_workers=1)
    assert made.load_state_dict(made.state_dict()) == [
        "Workers transform images at random, and their generators begin anew."
    ]


def test_a_checkpoint_of_another_policy_is_refused(trainer: Any) -> None:
    saved = trainer("act").state_dict()
    with pytest.raises(CheckpointError, match=r"do not fit the policy: .* and others"):
        trainer("diffusion").load_state_dict(saved)
    odd = {**saved, "optimizer": {**saved["optimizer"], "param_groups": []}}
    with pytest.raises(CheckpointError, match="optimiser does not fit"):
        trainer("act").load_state_dict(odd)


class Asks:
    """Somebody who could ask for a reset."""

    @hookimpl
    def callbacks(self, run: Run) -> Any:
        return RunCallback()


def test_a_reset_draws_another_policy_and_a_warm_start_comes_back(trainer: Any) -> None:
    made = trainer("act")
    first = parameters(made.native)
    before = torch.get_rng_state()
    made.reset_policy(1)
    drawn = parameters(made.native)
    assert not same(first, drawn)
    made.reset_policy(1)
    assert same(drawn, parameters(made.native))
    assert torch.equal(before, torch.get_rng_state())
    other = trainer("act", {"asks": Asks()})
    other.load_policy({"policy": drawn})
    other.reset_policy(2)
    assert same(drawn, parameters(other.native))
