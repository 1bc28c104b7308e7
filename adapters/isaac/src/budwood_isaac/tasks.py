"""Tasks of Isaac Lab: their configurations, changed as a run asks, and the runtime they need.

A task is a Gymnasium id with an ``env_cfg_entry_point``, as Isaac Lab registers its own. ``module:Id`` imports the module
that registers it first.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from budwood.api import ConfigError

RESERVED = {
    "seed": "seed",
    "scene.num_envs": "env.n_envs",
    "sim.device": "plugins.isaac.device",
    "compute_final_obs": "",
}
"""Settings of a task that follow from the run, and where the run says them."""

INSTALL = (
    "It pins versions that other trainers refuse, so it needs an environment of its own: in one, pip install -c "
    "adapters/isaac/constraints.txt isaaclab budwood-isaac budwood-sb3, with that file from budwood's repository (7.4 GB). "
    "Tasks then run on Newton, also on a CPU; for PhysX and RTX sensors add Isaac Sim, which is the extra "
    "isaaclab[isaacsim] and wants an RTX GPU"
)


def missing() -> ConfigError | None:
    """What is wrong if Isaac Lab is not installed; nothing is imported."""
    if importlib.util.find_spec("isaaclab") is not None:
        return None
    return ConfigError("Isaac Lab is not installed in this environment", where="env.vec", do=INSTALL)


@dataclass(frozen=True)
class Task:
    """Everything that a simulation is made from. ``changes`` are settings of the task's configuration, nested."""

    id: str
    n_envs: int
    seed: int
    changes: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    physics: str | None = None
    visualizer: str | None = None

    def launch(self, use: Callable[[Callable[[], Any]], None]) -> None:
        """Start what the task needs, Isaac Sim only if it does, and call ``use`` with a maker of its environment."""
        import torch
        from isaaclab.app import launch_simulation, validate_launch

        device = _device(self.device, torch.cuda.is_available())
        cfg = self.configuration(device)
        runtime = {"device": device, "headless": self.visualizer is None, "visualizer": [self.visualizer or "none"]}
        _, needs_isaac_sim = validate_launch(cfg, runtime)
        if needs_isaac_sim and importlib.util.find_spec("isaacsim") is None:
            raise ConfigError(
                f"{short(self.id)} needs Isaac Sim, which is not installed, for {', '.join(needs_isaac_sim)}",
                where="plugins.isaac",
                do="Install Isaac Lab's extra isaaclab[isaacsim], or choose physics and a visualizer that go without, such as "
                "physics: newton_mjwarp",
            )
        with launch_simulation(cfg, runtime):
            import gymnasium

            use(lambda: gymnasium.make(short(self.id), cfg=cfg))

    def configuration(self, device: str) -> Any:
        cfg = load(self.id, self.physics)
        change(cfg, self.changes)
        cfg.seed, cfg.scene.num_envs, cfg.sim.device = self.seed, self.n_envs, device
        cfg.compute_final_obs = True
        if device == "cpu" and hasattr(cfg.sim.physics, "use_cuda_graph"):
            cfg.sim.physics.use_cuda_graph = False
        return cfg


def short(task: str) -> str:
    """``module:Id`` -> ``Id``."""
    return task.rpartition(":")[2]


def _device(wanted: str, cuda: bool) -> str:
    if wanted == "auto":
        return "cuda:0" if cuda else "cpu"
    return "cuda:0" if wanted == "cuda" else wanted


def load(task: str, physics: str | None = None) -> Any:
    """The task's own configuration, with the chosen physics. Needs no runtime, and prints nothing."""
    with contextlib.redirect_stdout(io.StringIO()):
        return _load(task, physics)


def _load(task: str, physics: str | None) -> Any:
    import gymnasium
    import isaaclab_tasks  # noqa: F401  registers Isaac Lab's own
    from isaaclab_tasks.utils import parse_env_cfg

    module, _, name = task.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"cannot import {module}: {error}", where="env.id") from error
    known = [key for key, spec in gymnasium.registry.items() if "env_cfg_entry_point" in spec.kwargs]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"no task of Isaac Lab is called {name!r}",
            where="env.id",
            do=(f"Did you mean {near[0]!r}? " if near else "")
            + "A task of your own is written module:Id, where the module registers it",
        )
    try:
        return parse_env_cfg(name, overrides=[] if physics is None else [f"physics={physics}"])
    except ValueError as error:
        raise ConfigError(f"{name} has no physics {physics!r}: {error}", where="plugins.isaac.physics") from error


def change(cfg: Any, changes: Mapping[str, Any], path: str = "") -> None:
    """Set ``changes`` in a task's configuration, which may nest objects and dicts: a mapping goes one level deeper."""
    for name, value in changes.items():
        inner = f"{path}{name}"
        if inner in RESERVED:
            raise ConfigError(
                f"{inner} of the task follows from the run",
                where=f"env.args.{inner}",
                do=f"Set {RESERVED[inner]} instead" if RESERVED[inner] else "Leave it out",
            )
        if not hasattr(cfg, "__dict__") and not isinstance(cfg, dict):
            raise ConfigError(
                f"{path[:-1]} of the task is {cfg!r} and has no settings of its own",
                where=f"env.args.{path[:-1]}",
                do="Give it one value",
            )
        known = cfg if isinstance(cfg, dict) else vars(cfg)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"{path[:-1] or 'the task'} has no setting {name!r}",
                where=f"env.args.{inner}",
                do=f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(sorted(known))}",
            )
        if isinstance(value, Mapping) and known[name] is not None:
            change(known[name], value, f"{inner}.")
        elif isinstance(cfg, dict):
            cfg[name] = _like(known[name], value)
        else:
            setattr(cfg, name, _like(known[name], value))


def _like(current: Any, value: Any) -> Any:
    """YAML knows no tuples, and writes 4 for 4.0."""
    if isinstance(current, tuple) and isinstance(value, list):
        return tuple(value)
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def author_weights(cfg: Any) -> dict[str, float] | None:
    """Reward term -> the author's weight, in the manager's order; None for a task of the direct workflow."""
    rewards = getattr(cfg, "rewards", None)
    if rewards is None:
        return None
    terms = rewards if isinstance(rewards, dict) else vars(rewards)
    return {name: float(term.weight) for name, term in terms.items() if term is not None}
