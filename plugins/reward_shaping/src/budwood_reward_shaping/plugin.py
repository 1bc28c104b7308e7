"""The plugin's hooks. Everything heavy is imported inside them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from budwood.api import (
    Contributions,
    Evaluator,
    History,
    PluginError,
    ReportSection,
    RewardCombination,
    RewardTerm,
    Run,
    RunCallback,
    Trainer,
    hookimpl,
)

if TYPE_CHECKING:
    from budwood_reward_shaping.shaping import Shaping


class RewardShaping:
    """Heuristic reward terms under weights that are searched for what gets the task done."""

    def __init__(self) -> None:
        self._shaping: Shaping | None = None

    def _assembled(self, run: Run) -> Shaping:
        from budwood_reward_shaping.shaping import assemble

        if self._shaping is None:
            self._shaping = assemble(run)
        return self._shaping

    @hookimpl
    def config_model(self) -> type[Any]:
        from budwood_reward_shaping.config import ShapingConfig

        return ShapingConfig

    @hookimpl(wrapper=True)
    def build_trainer(self, run: Run, contributions: Contributions) -> Generator[None, Trainer, Trainer]:
        from budwood_reward_shaping.shaping import check_advantages

        trainer = yield
        try:
            check_advantages(run.section, contributions)
        except PluginError:
            trainer.close()
            raise
        return trainer

    @hookimpl
    def reward_terms(self, run: Run) -> Iterable[RewardTerm]:
        return self._assembled(run).reward_terms()

    @hookimpl
    def reward_combination(self, run: Run) -> RewardCombination:
        return self._assembled(run).combination

    @hookimpl
    def callbacks(self, run: Run) -> Iterable[RunCallback]:
        from budwood_reward_shaping.shaping import callbacks

        return callbacks(self._assembled(run), run)

    @hookimpl
    def evaluators(self, run: Run) -> Iterable[Evaluator]:
        from budwood_reward_shaping.shaping import evaluators

        return evaluators(self._assembled(run), run)

    @hookimpl
    def report_sections(self, run: Run, history: History) -> Iterable[ReportSection]:
        from budwood_reward_shaping.report import sections

        return sections(run.section, history)

    @hookimpl
    def components(self, kind: str) -> Mapping[str, Any]:
        from budwood_reward_shaping.terms import KIND

        if kind != KIND:
            return {}
        from budwood_reward_shaping import reach_budget
        from budwood_reward_shaping.packs import gymnasium_mujoco

        return {**gymnasium_mujoco.PACKS, **reach_budget.PACKS}
