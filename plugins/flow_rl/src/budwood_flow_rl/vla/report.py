"""The plugin's part of the report: that of flow_rl, under the names that LeRobot's loop logs."""

from __future__ import annotations

from collections.abc import Sequence

from budwood.api import History, Picture, ReportSection
from budwood_flow_rl.report import LEROBOT, drawn


def sections(history: History, films: Sequence[Picture] = ()) -> list[ReportSection]:
    """One section if the run had an iteration, else none."""
    notes = []
    if "flow_vla/data_time" in history:
        found = history["flow_vla/data_time"][1][0]
        notes.append(
            "Before the first update the velocities pointed as data time demands."
            if found
            else "Before the first update the velocities did not show which way time runs, as untrained ones do not."
        )
    return drawn(LEROBOT, notes, history, films)
