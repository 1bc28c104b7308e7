"""What the figures of a study must not say."""

from __future__ import annotations

import numpy as np
import pytest

from budwood.study_config import StudyConfig
from budwood.study_figures import drawings
from budwood.study_table import Tables


@pytest.mark.parametrize("runs", [2, 6], ids=["without a band", "with a band"])
def test_a_run_that_never_got_there_is_in_no_share_of_runs_that_did(runs: int) -> None:
    from matplotlib.figure import Figure

    config = StudyConfig.model_validate(
        {
            "base": {},
            "budget": 100,
            "variants": {"never": None, "half": None},
            "metrics": {"steps": {"metric": "P", "reaches": 1.0}},
        }
    )
    scores = {"never": np.full(runs, 100.0), "half": np.array([10.0, 100.0] * (runs // 2))}
    tables = Tables(cells=[], summary=[], pairs=[], scores={"steps": scores}, curves={}, notes=[])
    (shares,) = [drawing for drawing in drawings(config, tables) if drawing.name == "profile"]
    axes = Figure().subplots()
    shares.draw(axes)
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert set(lines["never"]) == {0.0}
    assert lines["half"][-1] == 0.5
