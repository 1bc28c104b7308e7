"""What the figures of a study must not say."""

from __future__ import annotations

import numpy as np
import pytest

from budwood.statistics import Band
from budwood.study_config import StudyConfig
from budwood.study_figures import drawings, overlay
from budwood.study_table import Tables


@pytest.mark.parametrize("runs", [2, 6], ids=["without a band", "with a band"])
def test_a_run_that_never_got_there_is_in_no_share_of_runs_that_did(runs: int) -> None:
    from matplotlib.figure import Figure

    config = StudyConfig.model_validate(
        {
            "base": {},
            "budget": 100,
            "variants": {"never": None, "half": None, "just": None},
            "metrics": {"steps": {"metric": "P", "reaches": 1.0}},
        }
    )
    scores = {name: np.full(runs, 100.0) for name in config.variants} | {"half": np.array([10.0, 100.0] * (runs // 2))}
    never = {
        "never": np.ones(runs, dtype=bool),
        "half": np.array([False, True] * (runs // 2)),
        "just": np.zeros(runs, dtype=bool),
    }
    summary = [
        {"variant": name, "metric": "steps", "n": runs, "iqm": 50.0, "low": 40.0, "high": 60.0}
        for name in config.variants
    ]
    tables = Tables([], summary, [], scores={"steps": scores}, censored={"steps": never}, curves={}, notes=[])
    bars, shares = drawings(config, tables)
    assert "Crosses are runs that never got there" in bars.caption
    drawn = Figure().subplots()
    bars.draw(drawn)
    assert [len(dots.get_offsets()) for dots in drawn.collections] == [0, runs, runs // 2, runs // 2, runs, 0], (
        "runs that got there and runs that did not, variant by variant"
    )

    axes = Figure().subplots()
    shares.draw(axes)
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert set(lines["never"]) == {0.0}
    assert lines["half"][-1] == 0.5
    assert lines["just"][-1] == 1.0, "who gets there with the last step of the budget has got there"


@pytest.mark.parametrize(
    ("of", "label"),
    [
        (None, "training steps"),
        ("eval/env_steps", "environment steps, evaluations included"),
        ("method/env_steps", "environment steps, evaluations included"),
        ("time/hours", "time/hours"),
    ],
)
def test_the_axis_is_named_after_what_counts_there(of: str | None, label: str) -> None:
    from matplotlib.figure import Figure

    config = StudyConfig.model_validate(
        {"base": {}, "variants": {"a": None}, "metrics": {"P": {"metric": "P", "of": of}}}
    )
    one = np.ones(1)
    tables = Tables(
        [], [], [], {"P": {"a": one}}, {"P": {"a": np.zeros(1, dtype=bool)}}, {"a": Band(one, one, one, one)}, []
    )
    axes = Figure().subplots()
    drawings(config, tables)[0].draw(axes)
    assert axes.get_xlabel() == label


def test_a_curve_of_one_evaluation_can_be_seen() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    once, twice = (Band(np.arange(n), np.ones(n), np.ones(n), np.ones(n)) for n in (1, 2))
    overlay(axes, {"once": once, "twice": twice}, ["once", "twice"], "steps", "P")
    assert [line.get_marker() for line in axes.get_lines()] == ["o", "None"]
