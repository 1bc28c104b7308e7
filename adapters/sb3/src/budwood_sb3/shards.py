"""The state of a model whose environments are divided among processes: joined for a checkpoint, divided on resume.

A checkpoint is that of one process with all environments, whoever wrote it, and any number of processes that divides the
environments goes on from it. Along the environments are: the last observations, the states of the environments and of the
vector around them, and what a wrapper of the vector keeps for each. Everything else is the same in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from budwood.api import CheckpointError, Processes, StateTree

ROWS: Mapping[str, tuple[str, ...]] = {
    "VecNormalize": ("returns", "old_obs", "old_reward"),
    "VecFrameStack": ("stacked_obs",),
    "VecMonitor": ("episode_returns", "episode_lengths"),
    "TermVecEnv": ("obs", "sums", "returns"),
    "VecCheckNan": (),
    "VecExtractDictObs": (),
    "VecTransposeImage": (),
}
"""Wrapper of a vector -> what it keeps for each environment."""

_BASE_ROWS = ("seeds", "options", "reset_infos", "buf_rews", "buf_dones", "actions")
_Rows = Callable[[Sequence[Any]], Any]


def part_of(state: StateTree) -> StateTree:
    """What is of a process's own environments."""
    return {"last": state["last"], "envs": state["envs"]}


def joined(state: StateTree, parts: Sequence[StateTree]) -> StateTree:
    """``state`` with the environments of all, whose ``parts`` are in the order of the processes."""
    return {**state, **_along(parts, _concatenated)}


def own(state: StateTree, processes: Processes, environments: int) -> StateTree:
    """This process's part of a state with ``environments``."""
    if not processes.several:
        return state
    rows = processes.part(environments)
    return {**state, **_along([part_of(state)], lambda values: values[0] if values[0] is None else values[0][rows])}


def _along(parts: Sequence[StateTree], rows: _Rows) -> StateTree:
    last = {name: _leaves([part["last"][name] for part in parts], rows) for name in parts[0]["last"]}
    envs = [part["envs"] for part in parts]
    return {"last": last, "envs": None if envs[0] is None else _vector(envs, rows)}


def _vector(envs: Sequence[StateTree], rows: _Rows) -> StateTree:
    bases = [env["base"] for env in envs]
    base = {name: rows([one[name] for one in bases]) if name in _BASE_ROWS else bases[0][name] for name in bases[0]}
    if "buf_obs" in base:  # a list of arrays, one a key of the observations
        base["buf_obs"] = [rows(list(arrays)) for arrays in zip(*(one["buf_obs"] for one in bases), strict=True)]
    layers = [_layer(list(same), rows) for same in zip(*(env["layers"] for env in envs), strict=True)]
    return {"layers": layers, "base": base, "envs": rows([env["envs"] for env in envs])}


def _layer(layers: Sequence[StateTree], rows: _Rows) -> StateTree:
    name = layers[0]["type"].rpartition(".")[2]
    if name not in ROWS:
        raise CheckpointError(
            f"{layers[0]['type']} around the environments keeps something, and budwood does not know what of it belongs to "
            "which environment",
            do="Train in one process, or without it",
        )
    key = "own" if "own" in layers[0] else "attributes"
    kept = [layer[key] for layer in layers]
    return {**layers[0], key: {
        what: _leaves([one[what] for one in kept], rows) if what in ROWS[name] else kept[0][what] for what in kept[0]
    }}  # fmt: skip


def _leaves(values: Sequence[Any], rows: _Rows) -> Any:
    if isinstance(values[0], dict):
        return {key: _leaves([value[key] for value in values], rows) for key in values[0]}
    return rows(values)


def _concatenated(values: Sequence[Any]) -> Any:
    if values[0] is None:
        return None
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    return [item for value in values for item in value]
