"""The adapter's hooks. Everything heavy is imported inside them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from budwood.api import Capabilities, Contributions, Graft, Run, Trainer, hookimpl

ALGOS = {"offline": "budwood_lerobot.offline", "online": "budwood_lerobot.online"}
"""``trainer.algo`` -> the module with its ``capabilities()`` and its ``build(run, contributions)``."""


class LeRobot:
    """LeRobot's policies: learning from a dataset, and from episodes in an environment."""

    @hookimpl
    def config_model(self) -> type[Any]:
        from budwood_lerobot.sections import Sections

        return Sections

    @hookimpl
    def capabilities(self, run: Run, target: Any | None) -> Capabilities | None:
        if target is None:
            found: Capabilities = import_module(ALGOS[run.trainer.algo]).capabilities()
            return found
        cls = target if isinstance(target, type) else type(target)
        if not any(base.__module__.partition(".")[0] == "lerobot" for base in cls.__mro__):
            return None  # of another library: LeRobot is not imported to find that out
        from budwood_lerobot.graft import graft_capabilities

        return graft_capabilities(target)

    @hookimpl
    def build_trainer(self, run: Run, contributions: Contributions) -> Trainer:
        made: Trainer = import_module(ALGOS[run.trainer.algo]).build(run, contributions)
        return made

    @hookimpl
    def build_graft(self, run: Run, graft: Graft, target: Any) -> Any:
        from budwood_lerobot.graft import build

        return build(graft, target)
