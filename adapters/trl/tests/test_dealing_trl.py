"""Another number of processes takes the rows of a step that those before would have taken."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_resume_trl import Files, run
from tiny import parameters, same

from budwood.api import ALONE, CheckpointError, ConfigError, Processes, StateTree
from budwood_trl import state
from budwood_trl.dealing import Deal, dealt_anew, sizes_among

DEFAULTS = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}


@pytest.mark.parametrize(
    ("deal", "processes", "rows", "micro_batches"),
    [
        (Deal(4, 1, 2), 2, 4, 1),
        (Deal(4, 1, 2), 1, 4, 2),  # no process needs more memory than it did
        (Deal(4, 1, 2), 4, 2, 1),
        (Deal(4, 1, 2), 8, 1, 1),
        (Deal(1, 8, 2), 4, 1, 4),  # fewer micro-batches before smaller ones
        (Deal(3, 2, 2), 6, 2, 1),
        (Deal(3, 1, 4), 3, 2, 2),  # four rows each, and no micro-batch of more than three
        (Deal(5, 1, 2), 1, 5, 2),
    ],
)
def test_a_step_keeps_its_rows(deal: Deal, processes: int, rows: int, micro_batches: int) -> None:
    found = deal.among(processes)
    assert found == Deal(rows, micro_batches, processes)
    assert found.step == deal.step


def test_rows_that_cannot_be_divided_are_told() -> None:
    with pytest.raises(
        ConfigError, match=r"a step has 6 rows .*among 4.*number of processes that divides them: 1, 2, 3, 6"
    ):
        Deal(3, 1, 2).among(4)


def test_arguments_follow_from_those_of_the_processes_that_began() -> None:
    args = {"per_device_train_batch_size": 4, "steps_per_generation": 3, "beta": 0.1}
    assert sizes_among(args, DEFAULTS, 2, 2) == args
    assert sizes_among(args, DEFAULTS, 2, 1) == {**args, "gradient_accumulation_steps": 2, "steps_per_generation": 6}
    assert sizes_among({}, DEFAULTS, 1, 4) == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    # three rows and not six, since completions are written for six at once
    six = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2}
    halved = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    assert sizes_among({**six, "steps_per_generation": 1}, DEFAULTS, 1, 2) == {**halved, "steps_per_generation": 1}
    assert sizes_among({**six, "generation_batch_size": 6}, DEFAULTS, 1, 2) == {**halved, "generation_batch_size": 6}
    with pytest.raises(ConfigError, match=r"written for 6 rows at once, which cannot be divided among 4 processes"):
        sizes_among({**six, "steps_per_generation": 1}, DEFAULTS, 1, 4)


def batch(*numbers: int, length: int = 3) -> dict[str, Any]:
    """A micro-batch with a row for each number: its prompt and its completion are that number, ``length`` of them."""
    ids = torch.tensor([[number] * length for number in numbers])
    return {
        "prompt_ids": ids, "prompt_mask": torch.ones_like(ids), "completion_ids": ids, "completion_mask": torch.ones_like(ids),
        "advantages": torch.tensor([float(number) for number in numbers]), "texts": [str(number) for number in numbers],
        "num_items_in_batch": torch.tensor(99), "old_per_token_logps": None,
    }  # fmt: skip


HELD = [[batch(1, 2), batch(5, 6)], [batch(3, 4, length=2), batch(7, 8, length=2)]]
"""Of two processes: in the first micro-batch rows 1 to 4 are used, in the second 5 to 8."""


@pytest.mark.parametrize(
    ("here", "rows"),
    [
        (Deal(2, 2, 1), [[[1, 2], [3, 4], [5, 6], [7, 8]]]),
        (Deal(4, 1, 1), [[[1, 2, 3, 4], [5, 6, 7, 8]]]),
        (Deal(1, 1, 4), [[[1], [5]], [[2], [6]], [[3], [7]], [[4], [8]]]),
        (Deal(1, 2, 2), [[[1], [3], [5], [7]], [[2], [4], [6], [8]]]),
    ],
)
def test_completions_in_hand_are_used_in_the_step_they_were_meant_for(here: Deal, rows: list[list[list[int]]]) -> None:
    for rank, wanted in enumerate(rows):
        found = dealt_anew(HELD, here, rank)
        assert found is not None
        assert [one["advantages"].tolist() for one in found] == wanted
        assert [[int(text) for text in one["texts"]] for one in found] == wanted
        assert all(one["num_items_in_batch"] == 99 and one["old_per_token_logps"] is None for one in found)


def test_shorter_rows_are_padded_where_trl_pads_them() -> None:
    found = dealt_anew(HELD, Deal(4, 1, 1), 0)
    assert found is not None
    assert found[0]["prompt_ids"].tolist() == [[1, 1, 1], [2, 2, 2], [0, 3, 3], [0, 4, 4]]
    assert found[0]["completion_mask"].tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0]]


def test_what_has_no_entry_for_each_row_is_not_dealt() -> None:
    pixels = [[{**one, "pixel_values": torch.zeros(7, 3)} for one in held] for held in HELD]
    assert dealt_anew(pixels, Deal(2, 2, 1), 0) is None


def as_two(saved: StateTree) -> StateTree:
    """The state that two processes would have written, of one whose micro-batches were theirs by turns."""
    micro_batches = saved["micro_batches"]
    held = saved["in_hand"]
    parts = [
        {
            "generators": saved["generators"],
            "in_hand": held and held[rank::2],
            "log": {**saved["log"], "loss": saved["log"]["loss"] * (2 * rank)},
        }
        for rank in range(2)
    ]
    counters = {**saved["counters"]}
    if "_step" in counters:
        counters["_step"] //= 2
    return {**saved, **parts[0], "each": parts, "micro_batches": micro_batches // 2, "counters": counters}


@pytest.mark.parametrize(
    ("algo", "args"),
    [
        ("grpo", {"steps_per_generation": 2, "num_iterations": 2, "num_generations": 2, "loss_type": "dapo"}),
        ("rloo", {"num_generations": 2}),
        ("dpo", {"logging_steps": 2}),
    ],
)
def test_one_process_goes_on_from_what_two_wrote(algo: str, args: dict[str, Any], trainer: Any, tmp_path: Path) -> None:
    args = {"per_device_train_batch_size": 2, **args}
    # One process of two micro-batches is, row for row, two processes of one.
    alone = {**args, "gradient_accumulation_steps": 2}
    if "steps_per_generation" in args:
        alone["steps_per_generation"] = 2 * args["steps_per_generation"]
    whole = trainer(algo, steps=5, **alone)
    files = Files(whole, tmp_path / "whole")
    run(whole, files)
    for cut in (1, 2, 3):
        saved = files.load(cut)
        again = trainer(algo, steps=5, begun_with=2, **args)
        torch.manual_seed(cut)
        (note,) = again.load_state_dict(as_two(saved["trainer"]))
        assert note.startswith("2 processes wrote this checkpoint, and 1 go on: a step keeps its 4 rows, 2 x 2 in each")
        run(again, Files(again, tmp_path / f"again-{cut}"), saved)
        assert same(parameters(again.native), parameters(whole.native)), f"cut at {cut}"


def test_a_process_that_was_not_there_draws_numbers_of_its_own() -> None:
    part = {"generators": {"torch": 0}, "in_hand": None, "log": {"loss": torch.tensor(1.0)}}
    other = {**part, "generators": {"torch": 1}, "log": {"loss": torch.tensor(2.0)}}
    whole = {
        **part,
        "each": [part, other],
        "micro_batches": 1,
        "progress": {"global_step": 7},
        "counters": {"_step": 7},
        "notes": [],
    }
    found = [state.own(whole, Deal(2, 1, 4), rank, seed=3) for rank in range(4)]
    assert [one["generators"] for one in found[:2]] == [{"torch": 0}, {"torch": 1}]
    drawn = [one["generators"]["torch"].tolist() for one in found[2:]]
    assert drawn[0] != drawn[1]
    assert drawn[0] == state.own(whole, Deal(2, 1, 4), 2, seed=3)["generators"]["torch"].tolist()
    assert all(one["rows_by"] == {"torch": 0} for one in found)
    assert [float(one["log"]["loss"]) for one in found] == [1.5] * 4
    assert found[0]["progress"]["train_batch_size"] == 2


class Told(Processes):
    """Two processes, each with the first GPU that it sees."""

    count = 2

    def __init__(self, *uuids: str) -> None:
        self.uuids = uuids

    def gather(self, value: Any) -> list[Any]:
        return list(self.uuids)


def test_two_processes_on_one_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from budwood_trl import building

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="a"))
    assert building._on_cpu("cpu", Told("a", "a"))
    assert not building._on_cpu("cuda", ALONE)
    assert not building._on_cpu("cuda", Told("a", "b"))  # a scheduler that shows each its own
    with pytest.raises(ConfigError, match=r"here are 2 processes and 1 GPU.*Start 1 process, or a new run"):
        building._on_cpu("auto", Told("a", "a"))


def test_fewer_gpus_than_wrote_the_state_take_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    from budwood.api import generators

    taken: list[Any] = []
    state_of_two = {**generators.generators(), "cuda": [torch.zeros(16), torch.ones(16)]}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", taken.append)
    generators.set_generators(state_of_two)
    assert len(taken) == 1
    assert len(taken[0]) == 1


@pytest.mark.parametrize(
    ("algo", "args"), [("kto", {}), ("dpo", {"dataloader_drop_last": True, "per_device_train_batch_size": 3})]
)
def test_steps_that_would_not_be_the_same_are_refused(
    algo: str, args: dict[str, Any], trainer: Any, tmp_path: Path
) -> None:
    whole = trainer(algo, steps=1, **args)
    run(whole, Files(whole, tmp_path))
    with pytest.raises(CheckpointError, match=r"Go on in 2 processes"):
        trainer(algo, steps=1, begun_with=2, **args).load_state_dict(as_two({**whole.state_dict(), "micro_batches": 2}))


def test_an_epoch_that_is_no_whole_number_of_steps_is_told(trainer: Any, tmp_path: Path) -> None:
    whole = trainer("dpo", steps=1, per_device_train_batch_size=3)
    run(whole, Files(whole, tmp_path))
    saved = as_two({**whole.state_dict(), "micro_batches": 2})
    notes = trainer("dpo", steps=1, begun_with=2, per_device_train_batch_size=3).load_state_dict(saved)
    assert any("16 rows are no whole number of steps" in note for note in notes), notes
