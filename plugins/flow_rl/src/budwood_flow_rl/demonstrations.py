"""Demonstrations: whole episodes of observations and actions, one plain file, and windows of actions to learn from.

On disk (:mod:`budwood_flow_rl.tensor_file`) the episodes lie end to end; episode ``e`` is the rows
``offsets[e]:offsets[e + 1]``. Row ``t`` is the observation before the step, the action that was executed, its reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from budwood.api import Array, BudwoodError
from budwood_flow_rl import tensor_file

KIND = "demonstrations"
ROWS = ("observations", "actions", "rewards")
HEADER = ("env_id", "env_args", "about")
EPISODES = ("offsets", "terminated", "truncated")
DTYPES = dict.fromkeys(ROWS, np.float32) | {"offsets": np.int64, "terminated": np.bool_, "truncated": np.bool_}


class DemonstrationError(BudwoodError):
    """Demonstrations that cannot be read or cannot be learnt from."""

    exit_code = 4


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """N steps in E episodes.

    ``observations`` (N, O) and ``actions`` (N, D), float32; ``rewards`` (N,) float32, or None where the source has none;
    ``offsets`` (E + 1,) int64; ``terminated`` and ``truncated`` (E,) bool: how each episode ended. An episode with
    neither was cut off by the end of the recording. ``env_id`` and ``env_args`` make the environment, None where the
    source does not say. ``about`` is JSON: source, seed, versions.

    :raises DemonstrationError: for shapes that do not fit together, an empty episode, or a number that is not finite.
    """

    observations: Array
    actions: Array
    rewards: Array | None
    offsets: Array
    terminated: Array
    truncated: Array
    env_id: str | None = None
    env_args: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = _misshapen(self) or _not_finite(self)
        if problem:
            raise DemonstrationError(
                f"these are no demonstrations: {problem}",
                where=str(self.about.get("source", "")),
                do="Record them again, or leave the broken episodes out",
            )

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def lengths(self) -> Array:
        """(E,) steps of each episode."""
        return np.diff(self.offsets)

    @property
    def finished(self) -> Array:
        """(E,) whether the episode came to its end, rather than to that of the recording."""
        return self.terminated | self.truncated

    @cached_property
    def returns(self) -> Array | None:
        """(E,) sums of rewards, float64; None without rewards."""
        if self.rewards is None:
            return None
        return np.add.reduceat(self.rewards.astype(np.float64), self.offsets[:-1])

    @property
    def mean_return(self) -> float | None:
        """Over finished episodes; None without rewards or without a finished episode."""
        if self.returns is None or not self.finished.any():
            return None
        return float(self.returns[self.finished].mean())

    def rows(self, episodes: Array) -> Array:
        """Indices of the steps of ``episodes``, in their order."""
        return np.concatenate([np.arange(self.offsets[e], self.offsets[e + 1]) for e in episodes])


def windows(offsets: Array, horizon: int) -> Array:
    """(E + 1,) -> (N, H): row ``t`` indexes the actions of steps t, t + 1, ..., t + H - 1.

    A window never leaves its episode: past the last step it repeats that step's action, so every step has a window and an
    episode shorter than H has its own.
    """
    steps = np.arange(offsets[-1])
    last = np.repeat(offsets[1:] - 1, np.diff(offsets))
    window: Array = np.minimum(steps[:, None] + np.arange(horizon), last[:, None])
    return window


def save(path: Path, demonstrations: Demonstrations) -> None:
    """Write them whole or not at all. The same demonstrations give the same bytes."""
    arrays = {name: value for name in (*ROWS, *EPISODES) if (value := getattr(demonstrations, name)) is not None}
    header = {
        "env_id": demonstrations.env_id,
        "env_args": dict(demonstrations.env_args),
        "steps": len(demonstrations),
        "episodes": len(demonstrations.lengths),
        "mean_return": demonstrations.mean_return,
        "about": dict(demonstrations.about),
    }
    tensor_file.write(path, KIND, arrays, header)


def load(path: Path) -> Demonstrations:
    """:raises DemonstrationError: the file is missing, damaged, of another kind, or its numbers are no demonstrations."""
    arrays, header = tensor_file.read(path, KIND, HEADER, DemonstrationError)
    missing = [name for name in (*ROWS, *EPISODES) if name not in arrays and name != "rewards"]
    if missing:
        raise DemonstrationError(f"the file lacks {', '.join(missing)}", where=str(path), do="Record them again")
    try:
        return Demonstrations(
            **{name: arrays.get(name) for name in (*ROWS, *EPISODES)},  # type: ignore[arg-type]
            env_id=header["env_id"],
            env_args=header["env_args"],
            about=header["about"],
        )
    except DemonstrationError as error:
        error.where = str(path)
        raise


def concatenated(
    episodes: Sequence[tuple[Array, Array, Array | None]], terminated: list[bool], truncated: list[bool], **rest: Any
) -> Demonstrations:
    """Demonstrations of ``episodes``, each (observations (T, O), actions (T, D), rewards (T,) or None)."""
    if not episodes:
        raise DemonstrationError("there is no episode", where=str(rest.get("about", {}).get("source", "")))
    observations, actions, rewards = zip(*episodes, strict=True)
    lengths = [len(each) for each in actions]
    return Demonstrations(
        observations=np.concatenate(observations).astype(np.float32),
        actions=np.concatenate(actions).astype(np.float32),
        rewards=None if any(each is None for each in rewards) else np.concatenate(rewards).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        terminated=np.array(terminated, dtype=bool),
        truncated=np.array(truncated, dtype=bool),
        **rest,
    )


def _misshapen(demos: Demonstrations) -> str:
    """What does not fit together, or an empty string."""
    for name, dtype in DTYPES.items():
        value = getattr(demos, name)
        if value is not None and value.dtype != dtype:
            return f"{name} are {value.dtype}, not {np.dtype(dtype)}"
    for name in ("observations", "actions"):
        shape = getattr(demos, name).shape
        if len(shape) != 2 or 0 in shape:
            return f"{name} have the shape {shape}, not (steps, dimensions)"
    steps, episodes = len(demos.actions), len(demos.offsets) - 1
    for name in ROWS:
        value = getattr(demos, name)
        if value is not None and len(value) != steps:
            return f"there are {len(value)} {name} and {steps} actions"
    if demos.rewards is not None and demos.rewards.ndim != 1:
        return f"rewards have the shape {demos.rewards.shape}, not (steps,)"
    if demos.offsets.ndim != 1 or episodes < 1 or demos.offsets[0] != 0 or demos.offsets[-1] != steps:
        return f"the episodes do not cover the {steps} steps"
    if (np.diff(demos.offsets) < 1).any():
        return f"episode {int(np.argmin(np.diff(demos.offsets)))} is empty"
    for name in ("terminated", "truncated"):
        if getattr(demos, name).shape != (episodes,):
            return f"{name} have the shape {getattr(demos, name).shape}, and there are {episodes} episodes"
    return ""


def _not_finite(demos: Demonstrations) -> str:
    """The first number that is NaN or infinite, or an empty string."""
    for name in ROWS:
        value = getattr(demos, name)
        if value is None or np.isfinite(value).all():
            continue
        row = int(np.argwhere(~np.isfinite(value))[0][0])
        episode = int(np.searchsorted(demos.offsets, row, side="right")) - 1
        return f"{name} of step {row - int(demos.offsets[episode])} of episode {episode} are not finite"
    return ""
