"""The outer loop's moves: when it steps, jumps, holds and stops, and which parts each baseline lacks."""

from __future__ import annotations

import numpy as np
import pytest

from budwood_reward_shaping import novelty
from budwood_reward_shaping.config import ExploreConfig, OuterConfig
from budwood_reward_shaping.outer import OuterLoop
from budwood_reward_shaping.weights import StaticWeights

GRADIENT = np.array([3.0, -1.0])


@pytest.fixture
def make(generators):
    def build(baseline=None, seed=0, initial=(1.0, 1.0), scale_free=False, outer=None, explore=None):
        space = StaticWeights(0.1, 10.0, scale_free)
        return OuterLoop(
            np.array(initial),
            space,
            OuterConfig(**(outer or {})),
            ExploreConfig(**(explore or {})),
            baseline,
            generators(seed),
        )

    return build


def test_gradient_step_has_the_length_of_lr(make):
    loop = make()
    decision = loop.report(0.0, GRADIENT)
    assert (decision.kind, decision.reset) == ("gradient", True)
    np.testing.assert_allclose(np.log(loop.propose()), 0.35 * GRADIENT / np.linalg.norm(GRADIENT))


def test_bounds_hold(make):
    loop = make(initial=(9.9, 0.105))
    loop.report(0.0, GRADIENT)
    np.testing.assert_allclose(loop.propose(), [10.0, 0.1])
    for _ in range(5):
        loop.report(0.0, GRADIENT)
    assert ((loop.propose() >= 0.1 - 1e-12) & (loop.propose() <= 10 + 1e-12)).all()


def test_only_ratios_move_when_the_scale_is_free(make):
    loop = make(scale_free=True)
    loop.report(0.0, np.array([5.0, 1.0]))
    assert np.log(loop.propose()).sum() == pytest.approx(0.0)
    assert make(scale_free=True).usable(np.array([2.0, 2.0])) is None


def test_one_search_has_one_novelty_target_and_a_predictor_for_each_jump(make, monkeypatch):
    def seeds_of(seed: int) -> list[novelty.Seeds]:
        seen: list[novelty.Seeds] = []

        def score(candidates, tried, seeds):
            seen.append(seeds)
            return novelty.rnd(candidates, tried, seeds)

        monkeypatch.setattr(novelty, "SCORES", {"rnd": score})
        loop = make(seed=seed)
        assert [loop.report(0.0, None).kind for _ in range(3)] == ["jump"] * 3
        return seen

    one, other = seeds_of(0), seeds_of(1)
    assert len({seeds.target for seeds in one}) == 1
    assert len({seeds.predictor for seeds in one}) == 3
    assert one[0].target != other[0].target


def test_no_gradient_means_stalled(make):
    decision = make().report(0.0, None)
    assert decision.kind == "jump"
    assert decision.reset
    assert decision.novelty > 0


def test_stall_needs_a_window_without_improvement(make):
    loop = make(outer={"steps": 99})
    kinds = [loop.report(p, GRADIENT).kind for p in (0.3, 0.1, 0.2, 0.0)]
    assert kinds[:3] == ["gradient"] * 3
    assert loop.stalled()
    improving = make()
    for p in (0.1, 0.2, 0.3, 0.4, 0.5):
        assert improving.report(p, GRADIENT).kind == "gradient"
    assert not improving.stalled()
    lately = make()
    for p in (0.3, 0.5, 0.1, 0.1):
        lately.report(p, GRADIENT)
    assert not lately.stalled()
    barely = make()
    for p in (0.3, 0.31, 0.31, 0.31):
        barely.report(p, GRADIENT)
    assert barely.stalled()


@pytest.mark.parametrize(("p", "expected"), [(0.0, 1.0), (0.45, 0.5), (0.89, 0.2)])
def test_probability_of_a_jump(make, p, expected):
    jumps = [make(seed=seed, explore={"novelty": "uniform"}).report(p, None).kind == "jump" for seed in range(400)]
    assert np.mean(jumps) == pytest.approx(expected, abs=0.07)


def test_stalled_without_a_jump_follows_the_gradient_or_holds(make):
    never = {"probability": [0.0, 0.0]}
    assert make(explore=never).report(0.0, None).kind == "hold"
    loop = make(explore=never)
    assert [loop.report(0.3, GRADIENT).kind for _ in range(6)] == ["gradient"] * 6


def test_success_holds_weights_and_policy_and_then_ends(make):
    loop = make(outer={"consecutive": 3})
    weights = loop.propose()
    for p, solved in ((0.95, False), (0.9, False), (1.0, True)):
        decision = loop.report(p, GRADIENT)
        assert (decision.kind, decision.reset, loop.solved, loop.over) == ("hold", False, solved, solved)
        np.testing.assert_array_equal(loop.propose(), weights)


def test_success_must_be_in_a_row(make):
    loop = make()
    assert [loop.report(p, GRADIENT).kind for p in (1.0, 0.0, 1.0)] == ["hold", "gradient", "hold"]
    assert not loop.over


def test_at_the_end_the_best_weights_are_kept(make):
    loop = make(outer={"steps": 4})
    proposals = []
    for p, soft in ((0.0, 0.5), (0.2, 0.5), (0.2, 0.6), (0.1, 0.9)):
        proposals.append(loop.propose())
        decision = loop.report(p, GRADIENT, soft)
    assert loop.over
    assert not loop.solved
    assert (decision.kind, decision.reset) == ("best", True)
    np.testing.assert_allclose(loop.propose(), proposals[2])


@pytest.mark.parametrize(
    ("baseline", "kind", "reset", "without_gradient"),
    [
        ("oracle", "hold", False, "hold"),
        ("uniform", "hold", False, "hold"),
        ("constant_reset", "hold", True, "hold"),
        ("gradient", "gradient", False, "hold"),
        ("gradient_reset", "gradient", True, "hold"),
        ("random", "jump", True, "jump"),
        ("sweep", "jump", True, "jump"),
        (None, "gradient", True, "jump"),
    ],
)
def test_baselines_are_the_same_machine_with_parts_off(make, baseline, kind, reset, without_gradient):
    decision = make(baseline).report(0.0, GRADIENT)
    assert (decision.kind, decision.reset) == (kind, reset)
    decision = make(baseline).report(0.0, None)
    assert (decision.kind, decision.reset) == (without_gradient, reset)


def test_ablations_of_reset(make):
    assert not make(outer={"reset_on_gradient": False}).report(0.0, GRADIENT).reset
    assert not make(explore={"reset": "none"}).report(0.0, None).reset


def test_jumps_cover_the_box(make):
    loop = make("random", outer={"steps": 400})
    weights = []
    for _ in range(300):
        loop.report(0.0, None)
        weights.append(np.log(loop.propose()))
    np.testing.assert_allclose(np.mean(weights, axis=0), 0.0, atol=0.25)
    np.testing.assert_allclose(np.std(weights, axis=0), np.log(100) / 12**0.5, atol=0.15)


def test_a_sweep_fills_the_box_more_evenly_than_chance(make):
    """The largest gap in any one weight: 32 points of a Sobol sequence have one in each thirty-second."""
    loop = make("sweep", outer={"steps": 400})
    points = []
    for _ in range(32):
        assert loop.report(0.0, None).novelty == 0.0
        points.append((loop.phi - np.log(0.1)) / np.log(100))
    for axis in np.sort(points, axis=0).T:
        np.testing.assert_array_equal(np.floor(axis * 32), np.arange(32))
    other = make("sweep", seed=1)
    other.report(0.0, None)
    assert not np.allclose(other.phi, np.log(0.1) + np.log(100) * points[0])


NOISE = {"variant": "noise", "noise": 0.5, "novelty": "maxmin"}


def test_noise_goes_with_the_gradient_and_never_jumps(make):
    loop = make(explore={**NOISE, "noise": 1e-9})
    decision = loop.report(0.0, GRADIENT)
    assert (decision.kind, decision.reset) == ("noise", True)
    np.testing.assert_allclose(np.log(loop.propose()), 0.35 * GRADIENT / np.linalg.norm(GRADIENT), atol=1e-7)
    kinds = {make(seed=seed, explore=NOISE).report(0.0, None).kind for seed in range(20)}
    assert kinds == {"noise"}


def test_noise_shrinks_with_performance(make):
    lengths = [make(explore=NOISE).report(p, GRADIENT).noise for p in (0.0, 0.45, 0.81)]
    np.testing.assert_allclose(lengths, [0.5, 0.25, 0.05])
    still = make(explore=NOISE)
    assert still.report(0.95, GRADIENT).kind == "hold"


def test_noise_is_the_most_novel_of_its_draws(make):
    def distance(candidates: int) -> float:
        moved = []
        for seed in range(40):
            loop = make(seed=seed, explore={**NOISE, "candidates": candidates})
            loop.report(0.0, None)
            moved.append(np.linalg.norm(np.log(loop.propose())))
        return float(np.mean(moved))

    assert distance(1) == pytest.approx(0.5 * (np.pi / 2) ** 0.5, rel=0.2)  # one Gaussian in the plane
    assert distance(64) > 2 * distance(1)


def test_noise_stays_inside_the_bounds_and_off_in_baselines(make):
    loop = make(explore={**NOISE, "noise": 50.0})
    loop.report(0.0, None)
    assert ((loop.propose() >= 0.1 - 1e-12) & (loop.propose() <= 10 + 1e-12)).all()
    assert make("gradient", explore=NOISE).report(0.0, GRADIENT).kind == "gradient"
    assert make("random", explore=NOISE).report(0.0, GRADIENT).kind == "jump"


def test_the_record_is_the_best_policy_or_one_trained_longer_under_its_weights(make):
    loop = make("constant_reset", outer={"steps": 99})
    assert [loop.report(p, None).record for p in (0.2, 0.1, 0.2, 0.3, 0.3)] == [True, False, True, True, True]
    moving = make("random", outer={"steps": 99})
    assert [moving.report(p, None).record for p in (0.2, 0.1, 0.2, 0.3, 0.3)] == [True, False, False, True, False]
    soft = make("random")
    assert [soft.report(0.0, None, s).record for s in (0.5, 0.4, 0.6)] == [True, False, True]


def test_beta_prefers_where_performance_was_better(make):
    def first_jump(beta: float) -> float:
        loop = make(explore={"novelty": "maxmin", "beta": beta, "candidates": 256}, initial=(5.0, 5.0))
        loop.phi = np.log([8.0, 8.0])
        loop.report(0.4, GRADIENT)
        loop.phi = np.log([0.2, 0.2])
        loop.report(0.0, None)
        return float(np.linalg.norm(np.log(loop.propose()) - np.log(8.0)))

    assert first_jump(20.0) < first_jump(0.0)


def test_one_term_and_ten_terms(make):
    one = make(initial=(1.0,))
    one.report(0.0, np.array([-2.0]))
    np.testing.assert_allclose(one.propose(), [np.exp(-0.35)])
    ten = make(initial=np.ones(10))
    assert ten.report(0.0, None).kind == "jump"
    assert ten.propose().shape == (10,)


@pytest.mark.parametrize("explore", [None, NOISE])
@pytest.mark.parametrize("baseline", [None, "random", "gradient_reset", "sweep"])
def test_a_restored_loop_makes_the_same_moves(make, baseline, explore):
    def reports():
        rng = np.random.default_rng(1)
        return [(float(rng.random() * 0.5), None if i % 3 else rng.normal(size=2)) for i in range(12)]

    whole = make(baseline, outer={"steps": 12}, explore=explore)
    moves = [(whole.report(*r), whole.propose()) for r in reports()]
    for cut in (0, 1, 5, 11):
        first = make(baseline, outer={"steps": 12}, explore=explore)
        for report in reports()[:cut]:
            first.report(*report)
        second = make(baseline, outer={"steps": 12}, explore=explore)
        second.load_state_dict(first.state_dict())
        for report, (decision, weights) in zip(reports()[cut:], moves[cut:], strict=True):
            assert second.report(*report) == decision
            np.testing.assert_array_equal(second.propose(), weights)
        assert second.over == whole.over
