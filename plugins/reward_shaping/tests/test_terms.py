"""Terms, packs and how names find them."""

from __future__ import annotations

import numpy as np
import pytest

from budwood.api import ConfigError, Contributed, ContributionError, PluginError
from budwood_reward_shaping.config import CriterionConfig, InlineTerm
from budwood_reward_shaping.plugin import RewardShaping
from budwood_reward_shaping.terms import (
    KIND,
    BatchTerm,
    InfoTerm,
    NativeTerm,
    ObsTerm,
    Pack,
    Registry,
    SignCheck,
    action_sq,
)


def offer(packs, who="somebody 1.0"):
    return Contributed(packs, "somebody", who)


@pytest.fixture
def registry():
    own = offer(RewardShaping().components(KIND), "budwood-reward-shaping 0.1.0")
    return lambda env="HalfCheetah-v5", *others: Registry(env, [own, *others])


def test_plain_info_terms_leave_reading_to_the_adapter():
    term = InfoTerm("forward", "reward_forward").contribution()
    assert (term.name, term.info_key, term.fn) == ("forward", "reward_forward", None)


def test_aliases_follow_what_the_environment_gives(batch):
    term = InfoTerm("forward", "reward_forward", aliases=("reward_run",), factor=2.0)
    for key in ("reward_forward", "reward_run"):
        fn = term.contribution().fn
        np.testing.assert_array_equal(fn(batch([{key: 1.5}, {key: -1.0}])), [3.0, -2.0])
        np.testing.assert_array_equal(fn(batch([{key: 0.5}])), [1.0])


def test_missing_key_says_what_there_is(batch):
    fn = InfoTerm("forward", "reward_forward", aliases=("reward_run",)).contribution().fn
    with pytest.raises(ContributionError) as error:
        fn(batch([{"x_position": 1.0, "reward_ctrl": 0.0}]))
    message = "the environment gives no info key 'reward_forward'; it gives reward_ctrl, x_position."
    assert str(error.value) == message


def test_other_kinds(batch):
    step = batch([{}, {}], obs=[[1.0, -2.0], [3.0, 4.0]], actions=[[1.0, 2.0], [0.0, 3.0]], rewards=[5, 6])
    np.testing.assert_array_equal(ObsTerm("height", 1).contribution().fn(step), [-2, 4])
    np.testing.assert_array_equal(ObsTerm("tilt", 1, np.abs).contribution().fn(step), [2, 4])
    np.testing.assert_array_equal(BatchTerm("squares", action_sq).contribution().fn(step), [5, 9])
    np.testing.assert_array_equal(NativeTerm().signal(step), [5, 6])
    assert NativeTerm().contribution() is None


def test_names_find_terms(registry):
    known = registry()
    assert known.term("forward").key == "reward_forward"
    assert known.term("native") == NativeTerm()
    inline = known.term(InlineTerm(name="drift", info="x", factor=-1.0, sign="-"))
    assert inline == InfoTerm("drift", "x", "-", factor=-1.0)
    assert registry("package.module:ReachBudget-v0").term("speed").name == "speed"


def test_unknown_name(registry):
    with pytest.raises(ConfigError) as error:
        registry().term("forwrd")
    assert str(error.value) == (
        "plugins.reward_shaping.terms: no term 'forwrd' is known for HalfCheetah-v5; known are effort, forward, native, "
        "upright. Did you mean 'forward'?"
    )
    with pytest.raises(ConfigError, match=r"known are native. You may write it out as \{name: NAME, info: INFO_KEY\}"):
        registry("CartPole-v1").term("balance")
    with pytest.raises(ConfigError, match="set pack to one of Ant-v4, Ant-v5, HalfCheetah-v4"):
        registry(None).term("speed")


def test_packs_of_other_plugins(registry):
    jerk = BatchTerm("jerk", action_sq)
    for env in ("HalfCheetah-v5", "*"):
        assert registry("HalfCheetah-v5", offer({env: Pack((jerk,))})).term("jerk") is jerk
    with pytest.raises(PluginError) as error:
        registry("HalfCheetah-v5", offer({"*": Pack((BatchTerm("forward", action_sq),))}))
    assert str(error.value) == (
        "plugins.reward_shaping.terms: two packs define 'forward' for HalfCheetah-v5: budwood-reward-shaping 0.1.0 and "
        "somebody 1.0. One of them must choose another name, or be left out of the run."
    )


def test_criteria_read_signals_terms_and_info_keys(registry, batch):
    known = registry("HalfCheetah-v5", offer({"*": Pack(signals={"pace": "x_velocity"})}))
    step = batch([{"x_velocity": 2.0, "reward_forward": 7.0}], obs=[[0, 0.5]], actions=[[3.0]], rewards=[4.0])
    mine = {"mine": InfoTerm("mine", "x_velocity", factor=10.0)}
    wanted = {
        "action_sq": 9,
        "step": 1,
        "native": 4,
        "is_upright": 1,
        "forward": 7,
        "pace": 2,
        "x_velocity": 2,
        "mine": 20,
    }
    assert {name: known.source(name, mine)(step)[0] for name in wanted} == wanted


def test_signs_are_checked_on_the_first_thousand_samples():
    terms = [BatchTerm("gain", action_sq, "+"), BatchTerm("cost", action_sq, "-"), BatchTerm("free", action_sq)]
    check = SignCheck(terms, [1, 2, 3])
    good = np.tile([0.0, 1.0, -1.0, -5.0], (600, 1))
    check(good)
    assert check.left > 0
    bad = good.copy()
    bad[7, 2] = 0.25
    with pytest.raises(PluginError) as error:
        check(bad)
    assert str(error.value) == (
        "plugins.reward_shaping.terms: term 'cost' is declared non-positive and was 0.25. Correct the term or its sign: "
        "weights are positive, so a penalty must be non-positive by itself."
    )
    check(good)
    assert check.left <= 0
    assert SignCheck([terms[2]], [1]).left == 0


def test_criteria_by_name_are_those_of_the_environments_pack(registry):
    own = CriterionConfig(name="far", source="x_position", stat="final", op=">=", threshold=10.0)
    known = registry("HalfCheetah-v5", offer({"HalfCheetah-v5": Pack(criteria=(own,))}))
    assert known.criterion("advances").threshold == 1.0
    assert known.criterion("far") is known.criterion(own) is own
    with pytest.raises(ConfigError) as error:
        known.criterion("advance")
    assert str(error.value) == (
        "plugins.reward_shaping.criteria: no criterion 'advance' is known for HalfCheetah-v5; known are advances, far, "
        "stays_upright. Did you mean 'advances'?"
    )


def test_two_packs_may_not_define_one_criterion(registry):
    again = CriterionConfig(name="advances", source="x_position", stat="final", op=">=", threshold=10.0)
    with pytest.raises(PluginError, match="two packs define 'criterion advances' for HalfCheetah-v5"):
        registry("HalfCheetah-v5", offer({"HalfCheetah-v5": Pack(criteria=(again,))}))
