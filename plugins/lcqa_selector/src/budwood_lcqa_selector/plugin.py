"""The plugin's hooks. Everything heavy is imported inside them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from budwood.api import CompletionReward, History, ReportSection, Run, RunCallback, hookimpl

if TYPE_CHECKING:
    from budwood_lcqa_selector.assembly import Picking


class LcqaSelector:
    """A picker of evidence, trained on mined evidence sets in two stages."""

    def __init__(self) -> None:
        self._picking: Picking | None = None

    def _assembled(self, run: Run) -> Picking:
        from budwood_lcqa_selector.assembly import Picking

        if self._picking is None:
            self._picking = Picking(run)
        return self._picking

    @hookimpl
    def config_model(self) -> type[Any]:
        from budwood_lcqa_selector.config import SelectorConfig

        return SelectorConfig

    @hookimpl
    def build_dataset(self, run: Run, role: str) -> Any | None:
        return self._assembled(run).dataset(role)

    @hookimpl
    def completion_rewards(self, run: Run) -> Iterable[CompletionReward]:
        return [CompletionReward("evidence", self._assembled(run).score)]

    @hookimpl
    def callbacks(self, run: Run) -> Iterable[RunCallback]:
        return [self._assembled(run).callback()]

    @hookimpl
    def report_sections(self, run: Run, history: History) -> Iterable[ReportSection]:
        from budwood_lcqa_selector.report import sections

        return sections(run, history)
