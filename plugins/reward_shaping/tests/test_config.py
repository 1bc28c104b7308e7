"""The section's defaults and what it refuses."""

from __future__ import annotations

import pydantic
import pytest

from budwood_reward_shaping.config import ShapingConfig

CRITERIA = [{"name": "far", "source": "x", "stat": "final", "op": ">=", "threshold": 4.0}]


def section(**changes):
    return ShapingConfig.model_validate({"terms": ["speed", "effort"], "criteria": CRITERIA, **changes})


def test_defaults_are_those_of_the_method():
    config = section()
    outer, explore = config.outer, config.explore
    assert (outer.steps, outer.inner_iterations, outer.lr, outer.rollouts, outer.alpha) == (30, 120, 0.35, 8, 0.05)
    assert (outer.episodes, outer.consecutive, outer.stall_window, outer.stall_delta) == (20, 2, 3, 0.02)
    assert (explore.novelty, explore.candidates, explore.p_target, explore.probability) == ("rnd", 64, 0.9, [0.2, 1.0])
    assert (config.weights.bounds, config.weights.w_task, config.weights.scale) == ([0.1, 10.0], 1.0, "auto")
    assert outer.reset_on_gradient
    assert config.searches is outer
    assert (config.weights.param, outer.estimator, outer.precond, outer.lr_state) == (
        "static",
        "one_step",
        "none",
        0.01,
    )
    assert (outer.inner_steps, outer.final_seeds, explore.variant, config.baseline) == (None, 0, "jump", None)


def test_preconditioned_steps_are_as_long_as_adams():
    assert section(outer={"precond": "adam"}).outer.alpha == 3e-4
    assert section(outer={"precond": "adam", "estimator": "neumann"}).outer.alpha == 3e-5
    assert section(outer={"precond": "adam", "alpha": 0.01}).outer.alpha == 0.01


def test_every_option_says_what_it_is():
    def undescribed(schema):
        for name, field in schema.get("properties", {}).items():
            if "description" not in field and "$ref" not in str(field):
                yield name
        for part in schema.get("$defs", {}).values():
            yield from undescribed(part)

    assert list(undescribed(ShapingConfig.model_json_schema())) == []


def test_two_ways_to_keep_weights_fixed():
    assert section(outer=None).searches is None
    assert section(outer={"steps": 0}).searches is None
    assert section(outer=None, criteria=[]).criteria == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"criteria": []}, "criteria: the search needs at least one to know success; or write outer: null"),
        ({"terms": ["speed", "task"]}, "'task' follows from the criteria and may only stand first"),
        ({"terms": ["speed", {"name": "speed", "info": "v"}]}, "terms: 'speed' is listed twice"),
        ({"terms": []}, "at least 1 item"),
        ({"terms": ["speed"], "weights": {"w_task": 0.0}}, "one term alone has nothing to be weighed against"),
        ({"criteria": CRITERIA * 2}, "criteria: 'far' is used twice"),
        ({"weights": {"initial": {"speed": 1.0}}}, "weights.initial: must name every term and no other: speed, effort"),
        ({"weights": {"scale": {"speed": 1.0}}}, "weights.scale: must name every term and no other: speed, effort"),
        ({"weights": {"scale": -1.0}}, "scale: a number must be positive"),
        ({"weights": {"bounds": [1.0, 1.0]}}, "bounds: needs 0 < lowest < highest"),
        ({"weights": {"initial": {"speed": 20.0, "effort": 1.0}}}, "initial: speed lies outside the bounds 0.1 to 10"),
        ({"explore": {"probability": [0.5, 0.2]}}, "probability: needs 0 <= lowest <= highest <= 1"),
        ({"baseline": "oracle"}, "baseline: oracle needs weights.initial"),
        ({"baseline": "uniform", "weights": {"initial": {"speed": 1, "effort": 1}}}, "uniform means equal weights"),
        ({"baseline": "random", "outer": None}, "baseline: needs the outer loop"),
        ({"baseline": "best"}, "'oracle', 'uniform', 'constant_reset', 'gradient', 'gradient_reset', 'random' or 'sweep'"),
        ({"weights": {"param": "states"}}, "'static', 'simplex' or 'state'"),
        ({"weights": {"param": "state"}, "outer": None}, "param: state is what a search finds; fixed weights are static"),
        ({"terms": ["speed"], "weights": {"param": "simplex"}}, "one term has weight 1 whatever a search over param: simplex"),
        ({"outer": {"samples": 3}}, "multiple of 2"),
        ({"outter": {}}, "Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_refusals(changes, message):
    with pytest.raises(pydantic.ValidationError) as error:
        section(**changes)
    assert message in str(error.value)


def test_task_may_stand_first_and_changes_nothing():
    criteria = [{"name": "far", "source": "x", "stat": "final", "op": ">=", "threshold": 1.0}]
    listed = ShapingConfig.model_validate({"terms": ["task", "speed"], "criteria": criteria})
    assert listed == ShapingConfig.model_validate({"terms": ["speed"], "criteria": criteria})
    assert listed.names == ["speed"]


def test_criteria_may_be_named():
    named = section(criteria=["distance", *CRITERIA])
    assert named.criteria[0] == "distance"
    with pytest.raises(pydantic.ValidationError, match="criteria: 'far' is used twice"):
        section(criteria=["far", *CRITERIA])


def test_beta_needs_a_novelty_to_be_weighed_against():
    with pytest.raises(pydantic.ValidationError, match="beta: is weighed against novelty"):
        section(explore={"beta": 1.0, "novelty": "uniform"})


def test_weights_of_the_state_start_within_their_bounds():
    wide = {"param": "state", "initial": {"speed": 10.0, "effort": 0.1}}
    assert section(weights=wide).weights.initial == wide["initial"]
    message = r"weights\.initial: over the geometric mean of all, speed lies outside the bounds"
    with pytest.raises(pydantic.ValidationError, match=message):
        section(terms=["speed", "effort", "push"], weights={**wide, "initial": {**wide["initial"], "push": 0.1}})
