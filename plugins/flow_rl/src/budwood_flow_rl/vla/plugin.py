"""The plugin's hooks. Everything heavy is imported inside them."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

from budwood.api import (
    Contributions,
    History,
    Objective,
    PolicyFactory,
    ReportSection,
    Run,
    RunCallback,
    Trainer,
    hookimpl,
)

if TYPE_CHECKING:
    from budwood_flow_rl.vla.learning import FlowVLALearning


class FlowVLA:
    """Reinforcement learning of LeRobot's flow policies: the denoising chain is the action."""

    def __init__(self) -> None:
        self._learning: FlowVLALearning | None = None
        self._trainer: Any = None

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

    @hookimpl(wrapper=True)
    def build_trainer(self, run: Run, contributions: Contributions) -> Generator[None, Trainer, Trainer]:
        trainer = yield
        self._trainer = trainer
        return trainer

    @hookimpl
    def callbacks(self, run: Run) -> Iterable[RunCallback]:
        made: list[RunCallback] = [self._of(run)]
        if run.section.film and run.folder is not None:
            from budwood_flow_rl.film import Film

            made.append(Film(run.folder, lambda show: self._trainer.play(run.seed, show)))
        return made

    @hookimpl
    def report_sections(self, run: Run, history: History) -> Iterable[ReportSection]:
        from budwood_flow_rl.film import pictures
        from budwood_flow_rl.vla.report import sections

        return sections(history, pictures(run.folder))
