"""The adapter's hooks. Everything heavy is imported inside them."""

from __future__ import annotations

from typing import Any

from budwood.api import Capabilities, Contributions, Graft, Run, Trainer, hookimpl


class TRL:
    """GRPO, RLOO, DPO, SFT, Reward and KTO trainers of TRL."""

    @hookimpl
    def config_model(self) -> type[Any]:
        from budwood.api import Config
        from budwood_trl.config import DatasetConfig, TrainerConfig

        class Sections(Config):
            trainer: TrainerConfig
            dataset: DatasetConfig = DatasetConfig(train=None, eval=None, limit=None)

        return Sections

    @hookimpl
    def capabilities(self, run: Run, target: Any | None) -> Capabilities | None:
        from budwood_trl.families import FAMILIES, capabilities

        if target is None:
            return capabilities(FAMILIES[run.trainer.algo])
        from budwood_trl.graft import graft_capabilities

        return graft_capabilities(target)

    @hookimpl
    def build_trainer(self, run: Run, contributions: Contributions) -> Trainer:
        from budwood_trl.building import build

        return build(run, contributions)

    @hookimpl
    def build_graft(self, run: Run, graft: Graft, target: Any) -> Any:
        from budwood_trl.graft import build

        return build(graft, target)
