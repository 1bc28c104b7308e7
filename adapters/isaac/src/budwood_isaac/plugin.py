"""The plugin's hooks. Everything heavy is imported inside them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from budwood.api import Run, hookimpl

if TYPE_CHECKING:
    from budwood_isaac.vec import IsaacVecEnv

VEC = "isaac"
"""What ``env.vec`` says for a vector of environments of Isaac Lab."""


class Isaac:
    """Tasks of Isaac Lab as environments, and their rewards term by term."""

    @hookimpl
    def config_model(self) -> type[Any]:
        from budwood_isaac.config import IsaacConfig

        return IsaacConfig

    @hookimpl
    def components(self, run: Run, kind: str) -> Mapping[str, Any]:
        if kind == "sb3.vec_envs":
            return {VEC: partial(make, run)}
        if kind == "reward_shaping.terms":
            return packs(run)
        return {}


def make(run: Run, name: str, n_envs: int, seed: int, args: Mapping[str, Any], role: str) -> IsaacVecEnv:
    """``n_envs`` environments of the task ``name`` in a process of their own; ``args`` change the task's settings."""
    from budwood_isaac.process import Remote
    from budwood_isaac.tasks import Task, missing
    from budwood_isaac.vec import IsaacVecEnv

    if (error := missing()) is not None:
        raise error
    section = run.section
    window = section.visualizer if role == "train" else None
    task = Task(name, n_envs, seed, args, section.device or run.device, section.physics, window)
    return IsaacVecEnv(Remote(task.launch), name)


def packs(run: Run) -> Mapping[str, Any]:
    """Task -> its terms, read from its configuration; nothing where that cannot be known (no Isaac Lab, no manager)."""
    from budwood_isaac.packs import pack
    from budwood_isaac.tasks import author_weights, change, load, missing, short

    env = run.config.get("env") or {}
    if env.get("vec") != VEC or missing() is not None:
        return {}
    cfg = load(env["id"], run.section.physics)
    change(cfg, env["args"])
    weights = author_weights(cfg)
    return {} if weights is None else {short(env["id"]): pack(weights)}
