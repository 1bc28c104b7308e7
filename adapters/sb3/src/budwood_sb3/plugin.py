"""The adapter's hooks. Everything heavy is imported inside them."""

from __future__ import annotations

from typing import Any

from budwood.api import Capabilities, Contributions, Graft, Run, Trainer, hookimpl


class SB3:
    """Stable-Baselines3 and sb3-contrib."""

    @hookimpl
    def config_model(self) -> type[Any]:
        from budwood.api import Config
        from budwood_sb3.config import EnvConfig, TrainerConfig

        class Sections(Config):
            trainer: TrainerConfig
            env: EnvConfig

        return Sections

    @hookimpl
    def capabilities(self, run: Run, target: Any | None) -> Capabilities | None:
        from budwood_sb3.algorithms import ALGORITHMS, capabilities

        if target is None:
            from budwood_sb3.vec_sources import chosen

            chosen(run)  # a name that nobody offers is known before anything is built
            return capabilities(ALGORITHMS[run.trainer.algo])
        from budwood_sb3.graft import graft_capabilities

        return graft_capabilities(target)

    @hookimpl
    def build_trainer(self, run: Run, contributions: Contributions) -> Trainer:
        from budwood_sb3.trainer import build

        return build(run, contributions)

    @hookimpl
    def build_graft(self, run: Run, graft: Graft, target: Any) -> Any:
        from budwood_sb3.graft import build

        return build(graft, target)
