"""What an offline training needs to go on exactly, as a tree of tensors and plain values; nothing is pickled.

How far the rows are read follows from the number of steps: LeRobot draws an epoch's order from the seed and the epoch alone.
"""

from __future__ import annotations

from typing import Any

import torch
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

from budwood.api import CheckpointError, Processes, StateTree, copied

_SAME = "Resume with the policy, the dataset and the plugins that the run was trained with"


def parameters(policy: Any) -> StateTree:
    """Parameters and buffers by name, frozen ones among them: a policy without a path has no folder to read those from."""
    return dict(copied(dict(policy.state_dict())))


def load_parameters(policy: Any, state: StateTree, where: str = "") -> None:
    """The inverse of :func:`parameters`.

    :raises CheckpointError: other names or shapes.
    """
    own = policy.state_dict()
    odd = {name for name in {*own, *state} if name not in own or name not in state}
    odd |= {name for name in state if name in own and own[name].shape != state[name].shape}
    if odd:
        some = ", ".join(sorted(odd)[:3])
        raise CheckpointError(
            f"the checkpoint's parameters do not fit the policy: {some}{' and others' if len(odd) > 3 else ''}",
            where=where,
            do=_SAME,
        )
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def load_optimizer(optimizer: Any, scheduler: Any, state: StateTree) -> None:
    """:raises CheckpointError: they belong to other parameters."""
    try:
        optimizer.load_state_dict(copied(state["optimizer"]))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's optimiser does not fit: {error}", do=_SAME) from error
    if (scheduler is None) != (state["scheduler"] is None):
        raise CheckpointError("the checkpoint has a schedule, or has none, unlike this run", do=_SAME)
    if scheduler is not None:
        scheduler.load_state_dict(copied(state["scheduler"]))


OF_EACH = ("generators", "meters")
"""What every process has its own of: the numbers it draws, and averages over its rows."""


def joined(state: StateTree, processes: Processes) -> StateTree:
    """The state of one process, with what each of several has of its own."""
    if not processes.several:
        return state
    return {**state, "each": processes.to_first({name: state[name] for name in OF_EACH})}


def own(state: StateTree, processes: Processes) -> tuple[StateTree, list[str]]:
    """This process's own, and what cannot go on exactly. One that was not there before keeps the generators it has."""
    each = state.get("each", [state])
    if len(each) == processes.count:
        return each[processes.rank], []
    note = (
        f"It was trained in {len(each)} process{'es' * (len(each) > 1)}: the rows go on as they were, and a policy that draws "
        "random numbers draws others."
    )
    return each[0] if processes.first else {"meters": each[0]["meters"]}, [note]


def meters(tracker: MetricsTracker) -> StateTree:
    """Averages that were not logged yet."""
    return {
        name: {"val": meter.val, "avg": meter.avg, "sum": meter.sum, "count": meter.count}
        for name, meter in tracker.metrics.items()
    }


def load_meters(tracker: MetricsTracker, state: StateTree) -> None:
    """The inverse of :func:`meters`."""
    for name, values in state.items():
        if name not in tracker.metrics:
            tracker.metrics[name] = AverageMeter(name, ":.3f", reduction="mean")
        for key, value in values.items():
            setattr(tracker.metrics[name], key, value)
