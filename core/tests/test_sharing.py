"""Pieces of a minibatch are the minibatch: their rows, their gradients over gloo, their random numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from budwood.api import ConfigError, ContributionError, Processes
from budwood.api.sharing import alike, check_alike, check_divided, own_numbers, own_rows, sum_gradients
from budwood.forking import forked
from budwood.processes import joined

INPUTS = torch.arange(24, dtype=torch.float64).reshape(8, 3) / 10  # (M, 3)
MINIBATCHES = (
    [7, 2, 5, 0],
    [1, 3, 2],
    [6],
)  # of 4 rows each here and there; the second and third fall to one process only


class Part(Processes):
    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    made = torch.nn.Linear(3, 2, dtype=torch.float64)
    made.unused = torch.nn.Parameter(torch.ones(5))  # it never has a gradient
    made.narrow = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    return made


def gradients(processes: Processes) -> list[Any]:
    """Of every minibatch and parameter, None where it has none."""
    found = []
    for minibatch in MINIBATCHES:
        policy = network()
        rows = processes.part(len(INPUTS))
        mine, share = own_rows(np.array(minibatch), rows)
        loss = (policy(INPUTS[rows][mine]) * policy.narrow).square().mean()
        (loss * share).backward()
        sum_gradients([*policy.parameters()], processes)
        found.extend([None if p.grad is None else p.grad.to(torch.float64).numpy() for p in policy.parameters()])
    return found


def test_gradients_of_pieces_are_summed_to_those_of_the_minibatch() -> None:
    def in_two() -> Any:
        with joined() as processes:
            return gradients(processes)

    alone = gradients(Part(0, 1))
    for found in forked(2, in_two):
        for one, other in zip(alone, found, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                bound = 2**-8 if one.shape == (1,) else 1e-12  # bfloat16 has 8 bits
                np.testing.assert_allclose(one, other, rtol=bound)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_each_takes_its_own_rows_in_the_order_of_all(kind: Any) -> None:
    chosen = kind([5, 0, 3, 7, 4])
    parts = [own_rows(chosen, Part(rank, 4).part(8)) for rank in range(4)]
    assert [(rows.tolist(), share) for rows, share in parts] == [([0], 0.2), ([1], 0.2), ([1, 0], 0.4), ([1], 0.2)]
    rows, share = own_rows(kind([5, 3]), slice(0, 2))
    assert (rows.tolist(), share) == ([0], 0.0)  # there has to be something to make a graph of


def test_numbers_are_a_process_own_for_a_while_only() -> None:
    def drawn(rank: int) -> tuple[list[float], float]:
        torch.manual_seed(5)
        with own_numbers("cpu", 3, rank):
            own = torch.rand(4).tolist()
        return own, torch.rand(1).item()

    (one, after_one), (other, after_other) = drawn(0), drawn(1)
    assert one == drawn(0)[0]
    assert set(one).isdisjoint(other)
    torch.manual_seed(5)
    assert after_one == after_other == torch.rand(1).item()


def test_numbers_of_its_own_come_from_the_generators_that_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other GPUs none is seeded, which takes torch longer than a minibatch of a small policy where there are none."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("it seeds every GPU"))
    with own_numbers("cpu", 3, 1):
        own = torch.rand(4)
    monkeypatch.undo()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence((3, 1)).generate_state(1)[0]))
        assert torch.equal(own, torch.rand(4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_likewise() -> None:
    def drawn(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(5)
        with own_numbers("cuda", 3, rank):
            own = torch.rand(4, device="cuda")
        return own, torch.rand(4, device="cuda")

    (one, after_one), (other, after_other) = drawn(0), drawn(1)
    assert not torch.equal(one, other)
    torch.manual_seed(5)
    assert torch.equal(after_one, after_other)
    assert torch.equal(after_one, torch.rand(4, device="cuda"))


def test_a_policy_that_diverged_alike_everywhere_has_not_drifted_apart() -> None:
    def policy(value: float) -> torch.nn.Module:
        made = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.constant_(made.weight, value)
        return made

    torch.manual_seed(0)
    for value in (math.nan, math.inf):
        check_alike([alike(policy(value), "cpu")] * 2)
    said = [alike(policy(value), "cpu") for value in (math.nan, 1.0)]
    with pytest.raises(ContributionError, match=r"the policy's parameters in process 1 is not that of process 0"):
        check_alike([said[0], {**said[0], "the policy's parameters": said[1]["the policy's parameters"]}])


def test_a_generator_drawn_from_in_one_process_is_told() -> None:
    policy = torch.nn.Linear(1, 1)
    before = alike(policy, "cpu")
    torch.rand(1)
    with pytest.raises(ContributionError, match="torch's global generator in process 2 is not that of process 0"):
        check_alike([before, before, alike(policy, "cpu")])


def test_environments_that_cannot_be_divided_are_refused() -> None:
    check_divided(4, Part(0, 2))
    with pytest.raises(ConfigError, match="3 environments cannot be divided among 2 processes") as refused:
        check_divided(3, Part(0, 2))
    assert refused.value.where == "env.n_envs"
