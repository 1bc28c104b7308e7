"""The plugin's hooks. Everything heavy is imported inside them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from budwood.api import History, Objective, PolicyFactory, ReportSection, Run, RunCallback, hookimpl

if TYPE_CHECKING:
    from budwood_flow_rl.vla.learning import FlowVLALearning


class FlowVLA:
    """Reinforcement learning of LeRobot's flow policies: the denoising chain is the action."""

    def __init__(self) -> None:
        self._learning: FlowVLALearning | None = None

    def _of(self, run: Run) -> FlowVLALearning:
        from budwood_flow_rl.vla.factory import FlowVLAFactory
        from budwood_flow_rl.vla.learning import FlowVLALearning
        from budwood_flow_rl.vla.refusals import refuse_trainer

        if self._learning is None:
            refuse_trainer(run)
            self._learning = FlowVLALearning(FlowVLAFactory(run.section), run.processes)
        return self._learning

    @hookimpl
    def config_model(self) -> type[Any]:
        from budwood_flow_rl.vla.config import FlowVLAConfig

        return FlowVLAConfig

    @hookimpl
    def build_policy(self, run: Run) -> PolicyFactory:
        return self._of(run).factory

    @hookimpl
    def objective(self, run: Run) -> Objective:
        return self._of(run).objective.as_objective()

    @hookimpl
    def callbacks(self, run: Run) -> Iterable[RunCallback]:
        return [self._of(run)]

    @hookimpl
    def report_sections(self, run: Run, history: History) -> Iterable[ReportSection]:
        from budwood_flow_rl.vla.report import sections

        return sections(history)
