"""What the report draws of a history, and that it never shows a weight at steps it was not used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import pytest

from budwood.api import Figure, ReportSection
from budwood.charts import Charts
from budwood_reward_shaping.config import Baseline, ShapingConfig
from budwood_reward_shaping.report import BASELINES, sections

ENDS = [100, 200, 300]


def shaping(terms: Sequence[str] = ("speed", "effort"), **section) -> ShapingConfig:
    criteria = [
        {"name": name, "source": "x", "stat": "final", "op": ">=", "threshold": 1.0} for name in ("distance", "budget")
    ]
    given = {"terms": list(terms), "criteria": criteria, "weights": {"w_task": 0.5, "scale": None}, **section}
    return ShapingConfig.model_validate(given)


def history(weights: Mapping[str, Sequence[float]], **changes) -> dict:
    """Three outer steps: a gradient step after the first, a jump after the second, success at last."""
    outer = {
        "P": [0.0, 0.5, 1.0],
        "P_se": [0.0, 0.1, 0.0],
        "P_soft": [0.5, 0.75, 1.0],
        "best_P": [0.0, 0.5, 1.0],
        "criterion/distance": [1.0, 1.0, 1.0],
        "criterion/budget": [0.0, 0.5, 1.0],
        "grad_norm": [0.2, 0.0, 0.3],
        "zero_grad": [0.0, 8.0, 1.0],
        "stepped": [1.0, 0.0, 0.0],
        "explored": [0.0, 1.0, 0.0],
        "novelty": [0.0, 1.25, 0.0],
        **{f"w/{name}": values for name, values in weights.items()},
        **changes,
    }
    logged = {f"reward_shaping/{name}": (ENDS, list(values)) for name, values in outer.items()}
    every = [50, 100, 150, 200, 250, 300, 350]
    for name in weights:
        logged[f"terms/reward_shaping.{name}"] = (every, [1.0] * 7)
    logged["terms/reward_shaping.task"] = (every, [0.1] * 7)
    return logged


TWO = {"speed": [1.0, 2.0, 0.25], "effort": [1.0, 0.5, 1.0]}


def drawn(config: ShapingConfig, logged: dict) -> tuple[ReportSection, dict[str, Figure]]:
    (section,) = sections(config, logged)
    return section, {figure.title: figure for figure in section.figures}


def points(figure: Figure, label: str) -> list[tuple[float, float]]:
    (series,) = (s for s in figure.series if s.label == label)
    return [(x, pytest.approx(y)) for x, y in zip(series.x, series.y, strict=True)]


@pytest.mark.parametrize("outer", [{}, {"outer": None}])
def test_every_figure_can_be_drawn(outer):
    for figure in drawn(shaping(**outer), history(TWO))[1].values():
        assert Charts().figure(figure).startswith("<svg")


def test_weights_stand_over_the_steps_they_were_used_for():
    _, figures = drawn(shaping(), history(TWO))
    assert points(figures["Weights"], "speed") == [(0, 1.0), (100, 2.0), (200, 0.25), (300, 0.25)]
    assert {series.style for series in figures["Weights"].series} == {"step"}


def test_what_a_term_adds_is_weighted_as_it_was_then():
    config = shaping(weights={"w_task": 0.5, "scale": {"speed": 10.0, "effort": "auto"}})
    logged = history(TWO) | {"reward_shaping/scale/effort": ([0], [4.0])}
    _, figures = drawn(config, logged)
    added = figures["What each term adds"]
    assert points(added, "speed") == [(50, 10), (100, 10), (150, 20), (200, 20), (250, 2.5), (300, 2.5)]
    assert points(added, "effort")[2] == (150, 2.0)
    assert points(added, "task")[-1] == (350, 0.05)
    assert points(figures["Terms"], "speed")[-1] == (350, 1.0)


def test_performance_is_marked_by_decision_beside_the_first_weights():
    section, figures = drawn(shaping(), history(TWO))
    shown = figures["Task performance P"]
    assert points(shown, "then a gradient step") == [(100, 0.0)]
    assert points(shown, "then a jump") == [(200, 0.5)]
    assert points(shown, "weights kept") == [(300, 1.0)]
    assert points(shown, "equal weights, tried first") == [(0, 0.0), (300, 0.0)]
    assert points(figures["Hypergradient"], "then a gradient step") == [(100, 0.2)]
    decisions = ["then a jump", "then a gradient step", "weights kept"]
    assert [series.label for series in shown.series][:3] == decisions
    assert [series.label for series in figures["Hypergradient"].series] == decisions
    assert section.text == (
        "Policies were trained and evaluated 3 times, with 1 jumps and 1 gradient steps. P reached 0.9 in outer step "
        "3. Equal weights, tried first, had P = 0.00; the best P was 1.00, with the weights speed 0.25, effort 1.",
    )
    assert [row["then"] for row in section.table] == ["gradient step", "jump, novelty 1.2", "weights kept"]
    assert [row["rollouts without a gradient"] for row in section.table] == [0, 8, 1]


def test_after_the_last_outer_step_the_best_weights_come_back():
    config = shaping(outer={"steps": 3})
    section, _ = drawn(config, history(TWO, P=[0.0, 0.5, 0.0], P_soft=[0.5, 0.75, 0.5]))
    assert section.table[-1]["then"] == "the weights of outer step 2 again, the best"
    section, _ = drawn(config, history(TWO, P=[0.0, 0.5, 0.5]))
    assert section.table[-1]["then"] == "weights kept"


def test_an_estimate_by_score_is_not_told_of_rollouts():
    config = shaping(outer={"estimator": "score", "samples": 2})
    section, _ = drawn(config, history(TWO, grad_norm=[0.0] * 3, stepped=[0.0] * 3))
    assert "rollouts without a gradient" not in section.table[0]
    assert any("all probes of a round did equally well" in text for text in section.text)
    section, _ = drawn(
        shaping(baseline="random"), history(TWO, grad_norm=[0.0] * 3, stepped=[0.0] * 3, zero_grad=[0.0] * 3)
    )
    assert "rollouts without a gradient" not in section.table[0]


def test_two_weights_are_shown_by_their_ratio():
    _, figures = drawn(shaping(), history(TWO))
    tried = figures["Weights tried"]
    assert tried.x_log
    assert points(tried, "equal weights, tried first") == [(1.0, 0.0)]
    assert points(tried, "tried") == [(4.0, 0.5)]
    assert points(tried, "the best") == [(0.25, 1.0)]


def test_three_weights_are_shown_one_by_one():
    terms = ["speed", "effort", "upright"]
    _, figures = drawn(shaping(terms), history(TWO | {"upright": [1.0, 1.0, 8.0]}))
    assert [title for title in figures if "tried" in title] == [f"Weights tried: {name}" for name in terms]
    assert points(figures["Weights tried: upright"], "the best") == [(8.0, 1.0)]


def test_the_first_weights_may_be_the_best_and_given():
    config = shaping(weights={"w_task": 0.5, "initial": {"speed": 2.0, "effort": 1.0}})
    logged = history(TWO, P=[1.0, 0.0, 1.0], P_soft=[1.0, 0.0, 1.0], best_P=[1.0] * 3)
    section, figures = drawn(config, logged)
    assert {series.label for series in figures["Weights tried"].series} == {"given weights, tried first", "tried"}
    assert "Given weights, tried first, had P = 1.00" in section.text[0]


def test_criteria_met_by_all_do_not_hide_each_other():
    _, figures = drawn(shaping(), history(TWO))
    criteria = figures["Each criterion"]
    assert points(criteria, "distance") == [(25.0, 1.0), (125.0, 1.0), (225.0, 1.0)]
    assert points(criteria, "budget") == [(75.0, 0.0), (175.0, 0.5), (275.0, 1.0)]


def test_no_gradient_no_figure_of_it():
    section, figures = drawn(shaping(), history(TWO, grad_norm=[0.0] * 3))
    assert "Hypergradient" not in figures
    assert section.text[-1] == "No rollout had a hypergradient: the task's reward did not vary within any of them."


def test_probes_and_noise_are_neither_kept_nor_stepped():
    section, figures = drawn(shaping(), history(TWO, stepped=[0.0] * 3, explored=[0.0] * 3, noise=[0.0, 0.25, 0.0]))
    assert points(figures["Task performance P"], "then other weights") == [(100, 0.0), (200, 0.5)]
    assert [row["then"] for row in section.table] == ["other weights", "other weights, noise 0.25", "weights kept"]


def test_policies_trained_afresh_are_told():
    logged = history(TWO)
    for key, value in {"P_1": 1.0, "P_2": 0.5, "P": 0.75, "P_low": 0.5, "P_high": 1.0}.items():
        logged[f"reward_shaping/final/{key}"] = ([400], [value])
    expected = "2 policies trained afresh under the best weights had P = 0.75, 95 % interval 0.50 to 1.00."
    assert drawn(shaping(), logged)[0].text[-1] == expected


def test_weights_of_the_state_show_their_spread():
    _, figures = drawn(shaping(), history(TWO, **{"w_spread/speed": [0.0, 0.1, 0.2], "w_spread/effort": [0.0] * 3}))
    assert points(figures["Spread of the weights"], "speed") == [(0, 0.0), (100, 0.1), (200, 0.2), (300, 0.2)]
    assert "What each term adds" not in figures


def test_every_baseline_has_words():
    assert set(BASELINES) == set(get_args(Baseline))


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_is_named(baseline):
    weights = {"initial": {"speed": 1.0, "effort": 1.0}} if baseline == "oracle" else {}
    section, _ = drawn(shaping(baseline=baseline, weights=weights), history(TWO))
    assert section.text[0] == f"This run is the baseline {baseline}: {BASELINES[baseline]}."


def test_fixed_weights():
    config = shaping(outer=None, weights={"scale": None, "initial": {"speed": 2.0, "effort": 1.0}})
    logged = {
        name: value
        for name, value in history(TWO).items()
        if name.startswith("terms/") or name.rpartition("/")[2] in ("P", "P_soft", "P_se", "distance", "budget")
    }
    section, figures = drawn(config, logged)
    assert set(figures) == {"Task performance", "Each criterion", "Terms", "What each term adds"}
    assert points(figures["What each term adds"], "speed")[-1] == (350, 2.0)
    assert section.text == ("The weights were fixed: speed 2, effort 1. The last P was 1.00.",)


def test_fixed_weights_of_the_simplex_sum_to_how_many_there_are():
    weights = {"scale": None, "param": "simplex", "initial": {"speed": 3.0, "effort": 1.0}}
    config = shaping(outer=None, weights=weights)
    logged = {"reward_shaping/P": ([1], [1.0]), "reward_shaping/P_soft": ([1], [1.0])}
    assert drawn(config, logged)[0].text == ("The weights were fixed: speed 1.5, effort 0.5. The last P was 1.00.",)


def test_weights_that_are_not_logged_are_not_drawn():
    section, figures = drawn(shaping(), history({}))
    assert set(figures) == {"Task performance P", "Each criterion", "Hypergradient"}
    assert section.text[0].endswith("the best P was 1.00.")


def test_nothing_measured_nothing_said():
    assert sections(shaping(), {"terms/reward_shaping.speed": ([1], [1.0])}) == []
