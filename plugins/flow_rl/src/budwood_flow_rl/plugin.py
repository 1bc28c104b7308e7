"""The plugin's hooks. Everything heavy is imported inside them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from budwood.api import (
    Contributions,
    History,
    LossTerm,
    Objective,
    PolicyFactory,
    ReportSection,
    Run,
    RunCallback,
    Trainer,
    hookimpl,
)

if TYPE_CHECKING:
    from budwood_flow_rl.losses import FlowObjective
    from budwood_flow_rl.start import FlowStart


class FlowRL:
    """Reinforcement learning of flow-matching policies: the denoising chain is the action."""

    def __init__(self) -> None:
        self._start: FlowStart | None = None
        self._objective: FlowObjective | None = None
        self._model: Any = None

    def _started(self, run: Run) -> FlowStart:
        from budwood_flow_rl.start import FlowStart

        if self._start is None:
            self._start = FlowStart.of(run)
        return self._start

    def _loss(self, run: Run) -> FlowObjective:
        from budwood_flow_rl.losses import FlowObjective

        if self._objective is None:
            self._objective = FlowObjective(run.section, run.section.parity.clamp_log_prob)
        return self._objective

    @hookimpl
    def config_model(self) -> type[Any]:
        from budwood_flow_rl.config import FlowConfig

        return FlowConfig

    @hookimpl(wrapper=True)
    def build_env(self, run: Run, role: str) -> Generator[None, Callable[[], Any], Callable[[], Any]]:
        inner = yield
        return partial(_wrapped, inner, self._started(run), role)

    @hookimpl
    def build_policy(self, run: Run) -> PolicyFactory:
        return self._started(run)

    @hookimpl
    def preflight(self, run: Run) -> None:
        self._started(run).check()

    @hookimpl(wrapper=True)
    def build_trainer(self, run: Run, contributions: Contributions) -> Generator[None, Trainer, Trainer]:
        trainer = yield
        self._model = trainer.native
        return trainer

    @hookimpl
    def objective(self, run: Run) -> Objective:
        return self._loss(run).as_objective()

    @hookimpl
    def loss_terms(self, run: Run) -> Iterable[LossTerm]:
        from budwood_flow_rl.losses import loss_terms

        return loss_terms(run.section)

    @hookimpl
    def callbacks(self, run: Run) -> Iterable[RunCallback]:
        from budwood_flow_rl.callback import FlowCallback

        def model() -> Any:
            return self._model

        made: list[RunCallback] = [FlowCallback(run.section, self._loss(run), self._started(run), model, run.processes)]
        if run.section.eval.film and run.folder is not None:
            from budwood_flow_rl.film import Film
            from budwood_flow_rl.rendering import played

            start, args = self._started(run), run.config["env"].get("args", {})
            made.append(Film(run.folder, lambda show: played(start, args, model(), run.seed, show)))
        return made

    @hookimpl
    def report_sections(self, run: Run, history: History) -> Iterable[ReportSection]:
        from budwood_flow_rl.film import pictures
        from budwood_flow_rl.report import sections

        return sections(run.section, history, pictures(run.folder))


def _wrapped(make: Callable[[], Any], start: FlowStart, role: str) -> Any:
    return start.wrap_env(make(), role)
