"""What several processes have to agree on: what callbacks ask for, and what contributions remember. Threads stand for them."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from budwood import across, tree
from budwood.api import (
    BindingError,
    Contributed,
    ContributionError,
    Contributions,
    Evaluation,
    Processes,
    RewardTerm,
    RunCallback,
    RunControl,
    StateTree,
)
from budwood.outlets import Unheard
from budwood.progress import Progress
from budwood.rhythm import Rhythm
from budwood.session import Session


class LeftAloneError(Exception):
    """Another one ended and will not answer."""


class Peer(Processes):
    """One of several threads that exchange as processes do."""

    def __init__(self, rank: int, count: int, table: Table) -> None:
        self.rank, self.count, self._table, self._times = rank, count, table, 0

    def gather(self, value: Any) -> list[Any]:
        return self._exchanged("gather", value)

    def to_first(self, value: Any) -> list[Any]:
        values = self._exchanged("to_first", value)
        return values if self.first else []

    def from_first(self, value: Any) -> Any:
        return self._exchanged("from_first", value)[0]

    def sum(self, tensor: Any) -> Any:
        return sum(self._exchanged("sum", tensor))

    def _exchanged(self, how: str, value: Any) -> list[Any]:
        """Processes that exchange different things would wait for each other until the deadline."""
        self._times += 1
        hows, values = zip(*self._table.exchange(self._times, self.rank, (how, value)), strict=True)
        assert hows == (how,) * self.count
        return list(values)


class Table:
    """Where threads lay down their values, at each of their exchanges."""

    def __init__(self, count: int) -> None:
        self.count, self.gone = count, set[int]()
        self._laid: defaultdict[int, dict[int, Any]] = defaultdict(dict)
        self._changed = threading.Condition()

    def exchange(self, time: int, rank: int, value: Any) -> list[Any]:
        with self._changed:
            laid = self._laid[time]
            laid[rank] = value
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: len(laid) == self.count or self.gone - laid.keys(), timeout=60)
            if len(laid) < self.count:
                raise LeftAloneError
            return [laid[rank] for rank in range(self.count)]

    def leave(self, rank: int) -> None:
        with self._changed:
            self.gone.add(rank)
            self._changed.notify_all()


def together(call: Callable[[Peer], Any], count: int = 2) -> list[Any]:
    """What ``call`` gives or raises in each."""
    table = Table(count)

    def run(rank: int) -> Any:
        try:
            return call(Peer(rank, count, table))
        except (ContributionError, LeftAloneError) as error:
            return error
        finally:
            table.leave(rank)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


class Counter:
    """A trainer with an update and a boundary every 10 steps."""

    n_envs, native = 1, None

    def __init__(self, total_steps: int, peer: Peer) -> None:
        self.total_steps, self.steps, self.peer = total_steps, 0, peer
        self.resets: list[int] = []

    def fit(self, events: Session) -> None:
        goes_on = events.start()
        while goes_on and self.steps < self.total_steps:
            self.steps += 10
            self.peer.sum(1.0)
            goes_on = events.boundary(self.steps)

    def evaluate(self, episodes: int, seed: int, observer: Any = None) -> Evaluation:
        return Evaluation(np.ones(episodes), np.ones(episodes, dtype=int), episodes, seed)

    def reset_policy(self, seed: int) -> None:
        self.resets.append(seed)

    def policy_state(self) -> StateTree:
        return {"resets": list(self.resets)}


def owned(callback: RunCallback) -> Contributed[RunCallback]:
    return Contributed(callback, "spy", "budwood-spy 1.0")


class Wishing(RunCallback):
    """Asks at ``event`` of step 20, in the processes ``ranks``."""

    def __init__(self, rank: int, ranks: Sequence[int], event: str, ask: Callable[[RunControl], None]) -> None:
        self.control: RunControl | None = None
        self._asks = rank in ranks
        self._event, self._ask = event, ask

    def _at(self, event: str, control: RunControl) -> None:
        if event == self._event and control.steps == 20 and self._asks:
            self._ask(control)

    def on_update_end(self, control: RunControl) -> None:
        self._at("on_update_end", control)

    def on_eval(self, control: RunControl, evaluation: Any) -> None:
        self._at("on_eval", control)

    def on_checkpoint(self, control: RunControl, folder: Path) -> None:
        self._at("on_checkpoint", control)


def trained(peer: Peer, callback: RunCallback, checkpoints: int | None = 20) -> tuple[int, list[int], int]:
    """(last step, policies that were made afresh, checkpoints) of a run of 40 steps."""
    trainer, saves = Counter(40, peer), []

    def save(session: Session) -> Path:
        session.state_dict()
        saves.append(session.steps)
        return peer.from_first(Path("checkpoint"))

    contributions = Contributions(callbacks=[owned(callback)])
    session = Session(trainer, contributions, Unheard(), Progress(), Rhythm(20, 1, 7, checkpoints), save, None, peer)  # type: ignore[arg-type]
    trainer.fit(session)
    session.finish()
    return session.steps, trainer.resets, len(saves)


ASKED = {
    "to stop (the loss is nan)": lambda control: control.stop("the loss is nan"),
    "for a checkpoint": lambda control: control.checkpoint(),
    "for a fresh policy of seed 5": lambda control: control.reset_policy(5),
}


@pytest.mark.parametrize("event", ["on_update_end", "on_eval", "on_checkpoint"])
@pytest.mark.parametrize("words", ASKED)
def test_what_one_process_alone_asks_for_ends_all_with_what_each_asked(event: str, words: str) -> None:
    every = 20 if event == "on_checkpoint" else None
    ended = together(lambda peer: trained(peer, Wishing(peer.rank, [1], event, ASKED[words]), every))
    for error in ended:
        assert isinstance(error, ContributionError)
        assert (
            "step 20 its callback asked for different things in the processes of this run (process 0: nothing; "
            in str(error)
        )
        assert f"; process 1: {words})" in str(error)
        assert (error.where, error.who) == ("plugins.spy", "budwood-spy 1.0")
        assert "run.processes.from_first(decision)" in error.do


def test_policies_of_other_seeds_are_different_things() -> None:
    ended = together(
        lambda peer: trained(
            peer, Wishing(peer.rank, [0, 1], "on_update_end", lambda control: control.reset_policy(peer.rank))
        )
    )
    assert "process 0: for a fresh policy of seed 0; process 1: for a fresh policy of seed 1" in str(ended[0])


def test_what_all_ask_for_is_done() -> None:
    def all_ask(words: str, event: str = "on_update_end") -> list[Any]:
        return together(lambda peer: trained(peer, Wishing(peer.rank, [0, 1], event, ASKED[words])))

    assert all_ask("to stop (the loss is nan)") == 2 * [(20, [], 2)]
    assert all_ask("for a checkpoint", "on_checkpoint") == 2 * [(40, [], 4)]  # one more, at the next boundary
    assert all_ask("for a fresh policy of seed 5") == 2 * [(40, [5], 3)]
    # a reason may differ, as one that tells the time does
    other = together(
        lambda peer: trained(
            peer, Wishing(peer.rank, [0, 1], "on_update_end", lambda control: control.stop(f"after {peer.rank} s"))
        )
    )
    assert [steps for steps, *_ in other] == [20, 20]  # type: ignore[misc]


class Film(Wishing):
    """Process 0 alone calls it."""

    across_processes = "first"

    def on_run_start(self, control: RunControl) -> None:
        self.started = True

    def state_dict(self) -> StateTree:
        return {"started": self.started}


@pytest.mark.parametrize("call", ["evaluate", "reset_policy", "load_policy", "checkpoint", "stop"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_callback_that_says_it_only_watches_may_not_ask(call: str, count: int) -> None:
    """In one process too, which is where its author tries it."""
    ended = together(
        lambda peer: trained(peer, Film(peer.rank, [0], "on_update_end", lambda control: getattr(control, call)(1))),
        count,
    )
    assert isinstance(ended[0], ContributionError)
    assert f'it called control.{call}, and says across_processes = "first"' in str(ended[0])
    assert ended[0].who == "budwood-spy 1.0"


def test_a_callback_that_only_watches_logs_and_notes_and_is_asked_for_its_state_where_it_was_called() -> None:
    def watch(control: RunControl) -> None:
        control.log({"film/frames": 3.0})
        control.note("filmed")
        assert (control.steps, control.goes_on, control.policy_state()) == (20, True, {"resets": []})

    assert together(lambda peer: trained(peer, Film(peer.rank, [0], "on_update_end", watch))) == 2 * [(40, [], 3)]


# ---- what contributions remember -------------------------------------------------------------------------------------


class Watched:
    """What a reward term remembers: in other processes nobody would load it."""

    across_processes = "first"

    def state_dict(self) -> StateTree:
        return {}

    def load_state_dict(self, state: StateTree) -> None: ...


def test_a_reward_is_not_process_0s_alone() -> None:
    term = RewardTerm("mean", lambda step: step.rewards, state=Watched())
    with pytest.raises(BindingError, match=r"reward mean of spy .* says 'first', which is for callbacks") as refused:
        across.check(Contributions(reward_terms=[Contributed(term, "spy", "budwood-spy 1.0")]))
    assert "one of same, environments; or" in refused.value.do


class Remembering(RunCallback):
    across_processes = "same"

    def __init__(self, state: StateTree) -> None:
        self.state = state

    def state_dict(self) -> StateTree:
        return self.state


class Rows(Remembering):
    across_processes = "environments"


def remembered(callback: Callable[[int], RunCallback]) -> list[Any]:
    return together(
        lambda peer: across.Memories(
            Contributions(callbacks=[owned(callback(peer.rank))]),
            peer,
        ).state_dict("step 20")["callbacks"][0]["state"]
    )


NAN = float("nan")
ALIKE = [
    NAN,
    np.array([NAN, 1.0]),
    np.float32(NAN),
    torch.tensor([NAN, 2.0]),
    torch.ones(3, dtype=torch.bfloat16),
    torch.ones(2, requires_grad=True),
    [1, (2, {"a": b"x"})],
]


@pytest.mark.parametrize("value", ALIKE, ids=str)
def test_whatever_is_the_same_to_the_bit_is_the_same(value: Any) -> None:
    first, _ = remembered(lambda rank: Remembering({"x": value}))
    assert isinstance(first, dict), first
    assert tree.fingerprint(first["x"]) == tree.fingerprint(value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu_are_compared_as_well() -> None:
    tensor = torch.ones(3, dtype=torch.bfloat16, device="cuda")
    assert isinstance(remembered(lambda rank: Remembering({"x": tensor.clone()}))[0], dict)
    assert isinstance(remembered(lambda rank: Remembering({"x": tensor + rank}))[0], ContributionError)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (NAN, 1.0),
        (np.array([1.0, NAN]), np.array([NAN, 1.0])),
        (np.ones(2), np.ones((2, 1))),
        (torch.ones(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.float16)),
        (torch.ones(3, dtype=torch.bfloat16), torch.tensor([1.0, 1.0, 2.0], dtype=torch.bfloat16)),
        ([1, (2, 3)], [1, (2, 4)]),
    ],
    ids=str,
)
def test_what_differs_is_named(one: Any, other: Any) -> None:
    error, _ = remembered(lambda rank: Remembering({"same": 1, "loop": [one, other][rank]}))
    assert isinstance(error, ContributionError)
    assert "it remembers is not the same in process 0 and in process 1: loop." in str(error)


def test_an_entry_that_one_process_lacks_differs() -> None:
    error, _ = remembered(lambda rank: Remembering({"a": 1} if rank else {"a": 1, "late": 2}))
    assert "process 1: late." in str(error)


def test_rows_of_environments_are_joined_whatever_holds_them_and_divided_again() -> None:
    def rows(rank: int) -> StateTree:
        return {"a": np.full((2, 3), rank), "b": [torch.full((2,), rank)], "word": "x"}

    joined, _ = remembered(lambda rank: Rows(rows(rank)))
    assert joined["a"].tolist() == [[0] * 3, [0] * 3, [1] * 3, [1] * 3]
    assert joined["b"][0].tolist() == [0, 0, 1, 1]
    assert joined["word"] == "x"
    error, _ = remembered(lambda rank: Rows({"count": np.array(3)}))
    assert "its state_dict raised ValueError: zero-dimensional arrays cannot be concatenated" in str(error)

    loaded: list[StateTree] = [{}, {}]

    class Loading(Rows):
        def load_state_dict(self, state: StateTree) -> None:
            loaded[state["a"][0, 0]] = state

    saved = {"callbacks": [{"plugin": "spy", "state": joined}], "terms": {}}
    together(
        lambda peer: across.Memories(Contributions(callbacks=[owned(Loading({}))]), peer).load_state_dict(saved, "now")
    )
    for rank in range(2):
        assert tree.fingerprint(loaded[rank]) == tree.fingerprint(rows(rank))


class Onlooker(RunCallback):
    across_processes = "first"

    def on_rollout_end(self, run: RunControl, rollout: Any) -> None: ...


def test_all_gather_a_rollout_that_only_process_0_looks_at() -> None:
    """Who is not called has to take part: one that did not would leave the other waiting."""

    def wanted(peer: Peer) -> bool:
        made = Contributions(callbacks=[owned(Onlooker())])
        return Session(
            Counter(40, peer), made, Unheard(), Progress(), Rhythm(20, 1, 7, None), None, None, peer
        ).wants_rollouts()  # type: ignore[arg-type]

    assert together(wanted) == [True, True]


def test_rows_of_environments_that_are_in_no_array_are_not_lost() -> None:
    """A list with a number for each environment would else be that of process 0."""

    class Listed(RunCallback):
        across_processes = "environments"

        def __init__(self, rank: int) -> None:
            self.rank = rank

        def state_dict(self) -> StateTree:
            return {"x": [self.rank]}

        def load_state_dict(self, state: StateTree) -> None: ...

    error, _ = remembered(Listed)
    assert isinstance(error, ContributionError)
    assert "keep rows of environments in an array" in str(error)
