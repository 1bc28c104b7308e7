"""Contributions gathered from several plugins, checked against what a trainer can bind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from budwood.api import (
    BindingError,
    BudwoodError,
    Capabilities,
    CompletionReward,
    Contributions,
    EvalReport,
    Evaluator,
    LossTerm,
    Objective,
    PluginError,
    RewardTerm,
    RunCallback,
    Seam,
    hookimpl,
)
from budwood.compose import KINDS, bindings, contributions
from budwood.plugins import Activation, Active

EVERYTHING = Capabilities(
    "rootstock/grow",
    {kind: Seam(f"place of {kind}", grade) for kind, grade in zip(KINDS, "ABCABCABCABCABC", strict=True)},
    loss_inputs=frozenset({"log_prob", "advantages"}),
)


def without(*kinds: str, reason: str = "") -> Capabilities:
    seams = {kind: seam for kind, seam in EVERYTHING.seams.items() if kind not in kinds}
    refused = dict.fromkeys(kinds, reason) if reason else {}
    return Capabilities(EVERYTHING.trainer, seams, refused, EVERYTHING.loss_inputs)


def plugin(**answers: Any) -> Any:
    """A plugin whose hooks give these answers; ``hook=value`` or ``hook=function of the hook's run``."""

    class Plugin:
        @hookimpl
        def reward_terms(self, run: Any) -> Any:
            return answers.get("reward_terms")

        @hookimpl
        def completion_rewards(self, run: Any) -> Any:
            return answers.get("completion_rewards")

        @hookimpl
        def reward_combination(self, run: Any) -> Any:
            return answers.get("reward_combination")

        @hookimpl
        def loss_terms(self, run: Any) -> Any:
            return answers.get("loss_terms")

        @hookimpl
        def objective(self, run: Any) -> Any:
            return answers.get("objective")

        @hookimpl
        def advantage(self, run: Any) -> Any:
            return answers.get("advantage")

        @hookimpl
        def callbacks(self, run: Any) -> Any:
            return answers.get("callbacks")

        @hookimpl
        def evaluators(self, run: Any) -> Any:
            return answers.get("evaluators")

        @hookimpl
        def build_policy(self, run: Any) -> Any:
            return answers.get("build_policy")

        @hookimpl
        def build_env(self, run: Any, role: str) -> Any:
            return answers.get("build_env", {}).get(role)

    return Plugin()


class Wrapper:
    """Wraps environments and policies, leaving a trace of itself and of the run it was given."""

    def __init__(self, change: Callable[[str, Any], Any] | None = None) -> None:
        self.change = change or (lambda run, inner: lambda *args: f"{run}({inner(*args)})")

    @hookimpl(wrapper=True)
    def build_env(self, run: Any, role: str) -> Any:
        return self.change(f"{run}:{role}", (yield))

    @hookimpl(wrapper=True)
    def build_policy(self, run: Any) -> Any:
        return self.change(run, (yield))


class Combination:
    version = 1
    needs_obs = False

    def bind(self, columns: Any) -> None: ...

    def __call__(self, terms: Any, obs: Any) -> Any: ...


class Watch(RunCallback): ...


def gather(plugins: Mapping[str, Any], make: Any, capabilities: Capabilities = EVERYTHING) -> Contributions:
    active = [make(name, instance) for name, instance in plugins.items()]
    return contributions(Activation(active, None), lambda one: f"run of {one.name}", capabilities)  # type: ignore[arg-type,return-value]


def term(name: Any) -> RewardTerm:
    return RewardTerm(name, info_key="x")


def evaluate(control: Any) -> EvalReport:
    return EvalReport()


def score(completions: Any) -> Any: ...


def loss(inputs: Any) -> Any: ...


def make_policy(observations: Any, actions: Any) -> Any:
    return "policy"


def gae(inputs: Any) -> Any: ...


def test_everything_in_the_order_of_the_yaml_and_attributed(in_memory: Any) -> None:
    bc, objective = LossTerm("bc", loss, needs=frozenset({"log_prob"})), Objective("clip", loss)
    watch, evaluator = Watch(), Evaluator("probe", 5, evaluate)
    combination = Combination()
    one = plugin(
        reward_terms=[term("b"), term("a")], callbacks=watch, reward_combination=combination, objective=objective
    )
    two = plugin(
        reward_terms=(term(name) for name in "ab"), completion_rewards=[CompletionReward("a", score)],
        loss_terms=[bc], evaluators=(evaluator,), advantage=gae,
        build_policy=make_policy, build_env={"eval": lambda: "own"},
    )  # fmt: skip
    made = gather({"one": one, "outer": Wrapper(), "two": two, "inner": Wrapper()}, in_memory)

    assert [(item.plugin, item.value.name) for item in made.reward_terms] == [
        *(("one", "b"), ("one", "a")),
        *(("two", "a"), ("two", "b")),
    ]
    assert made.reward_terms[2].who == "budwood-two 1.0"
    assert [item.value.fn for item in made.completion_rewards] == [score]
    assert made.reward_combination is not None
    assert made.reward_combination.value is combination
    assert [item.value for item in made.callbacks] == [watch]
    assert [item.value for item in made.evaluators] == [evaluator]
    assert [item.value for item in made.loss_terms] == [bc]
    assert made.objective is not None
    assert made.objective.value is objective
    assert made.advantage is not None
    assert (made.advantage.value, made.advantage.plugin) == (gae, "two")
    assert made.policy is not None
    policy: Any = made.policy.value("observations", "actions")
    assert policy == "run of outer(run of inner(policy))"
    assert made.wrap_env is not None
    assert made.wrap_env(lambda: "default", "train")() == "run of outer:train(run of inner:train(default))"
    assert made.wrap_env(lambda: "default", "eval")() == "run of outer:eval(run of inner:eval(own))"

    assert [(b.order, b.plugin, b.kind, b.name, b.place, b.grade) for b in bindings(made, EVERYTHING)] == [
        (1, "two", "build_env", "factory (eval)", "place of build_env", "A"),
        (2, "inner", "build_env", "wrapper", "place of build_env", "A"),
        (3, "outer", "build_env", "wrapper", "place of build_env", "A"),
        (4, "one", "reward_terms", "one.b", "place of reward_terms", "C"),
        (5, "one", "reward_terms", "one.a", "place of reward_terms", "C"),
        (6, "two", "reward_terms", "two.a", "place of reward_terms", "C"),
        (7, "two", "reward_terms", "two.b", "place of reward_terms", "C"),
        (8, "two", "completion_rewards", "two.a", "place of completion_rewards", "A"),
        (9, "one", "reward_combination", "Combination", "place of reward_combination", "B"),
        (10, "two", "build_policy", "make_policy", "place of build_policy", "A"),
        (11, "inner", "build_policy", "wrapper", "place of build_policy", "A"),
        (12, "outer", "build_policy", "wrapper", "place of build_policy", "A"),
        (13, "two", "advantage", "gae", "place of advantage", "A"),
        (14, "one", "objective", "one.clip", "place of objective", "C"),
        (15, "two", "loss_terms", "two.bc", "place of loss_terms", "A"),
        (16, "one", "callbacks", "Watch", "place of callbacks", "B"),
        (17, "two", "evaluators", "two.probe", "place of evaluators", "C"),
    ]
    assert bindings(made, EVERYTHING)[1].who == "budwood-inner 1.0"


def test_no_plugin_contributes_nothing(in_memory: Any) -> None:
    nothing = Capabilities("rootstock/grow", {})
    for plugins in ({}, {"one": plugin(), "two": plugin(reward_terms=[], callbacks=())}):
        made = gather(plugins, in_memory, nothing)
        assert (made.wrap_env, made.policy, made.objective, made.advantage, made.reward_combination) == (None,) * 5
        assert not any((made.reward_terms, made.loss_terms, made.callbacks, made.evaluators))
        assert bindings(made, nothing) == []


def test_hooks_are_called_once_and_environments_wrapped_when_asked(in_memory: Any) -> None:
    asked: list[str] = []

    class Plugin:
        @hookimpl
        def build_env(self, run: Any, role: str) -> Any:
            asked.append(role)
            return lambda: role

    made = gather({"one": Plugin()}, in_memory)
    assert made.wrap_env is not None
    assert [made.wrap_env(lambda: "default", role)() for role in ("eval", "train", "eval")] == ["eval", "train", "eval"]
    assert sorted(asked) == ["eval", "train"]


class Rows:
    """Builds a dataset for one role, or wraps what is there."""

    def __init__(self, rows: list[str], role: str = "train") -> None:
        self.rows, self.role, self.asked = rows, role, 0

    @hookimpl
    def build_dataset(self, run: Any, role: str) -> Any:
        self.asked += 1
        return self.rows if role == self.role else None


class Shortens:
    @hookimpl(wrapper=True)
    def build_dataset(self, run: Any, role: str) -> Any:
        inner = yield
        return [*inner[:1], run]


def test_datasets_are_made_when_they_are_asked_for(in_memory: Any) -> None:
    rows = Rows(["a", "b"])
    made = gather({"outer": Shortens(), "rows": rows, "inner": Shortens()}, in_memory)
    assert rows.asked == 0, "explain makes no dataset"
    assert [(b.plugin, b.kind, b.name) for b in bindings(made, EVERYTHING)] == [
        ("rows", "build_dataset", "dataset"),
        ("inner", "build_dataset", "wrapper"),
        ("outer", "build_dataset", "wrapper"),
    ]
    assert made.wrap_dataset is not None
    assert made.wrap_dataset(None, "train") == ["a", "run of outer"]
    assert made.wrap_dataset(["c", "d"], "eval") == ["c", "run of outer"]
    assert made.wrap_dataset(None, "eval") is None, "there is nothing to wrap"
    two = gather({"rows": rows, "other": Rows(["c"])}, in_memory)
    assert two.wrap_dataset is not None
    with pytest.raises(PluginError, match=r"build_dataset is claimed by both rows .* and other"):
        two.wrap_dataset(None, "train")
    with pytest.raises(BindingError, match="cannot bind dataset dataset: it has environments"):
        gather({"rows": rows}, in_memory, without("build_dataset", reason="it has environments"))


def test_who_generates_and_who_scores_is_claimed(in_memory: Any) -> None:
    class Writes:
        @hookimpl
        def rollout(self, run: Any) -> Any:
            return score

        @hookimpl
        def decoder(self, run: Any) -> Any:
            return score

        @hookimpl
        def completion_advantage(self, run: Any) -> Any:
            return gae

        @hookimpl(wrapper=True)
        def build_model(self, run: Any) -> Any:
            return ((yield), run)

    made = gather({"one": Writes()}, in_memory)
    assert [(b.kind, b.name) for b in bindings(made, EVERYTHING)] == [
        ("build_model", "wrapper"), ("rollout", "score"), ("decoder", "score"), ("completion_advantage", "gae"),
    ]  # fmt: skip
    assert made.wrap_model is not None
    assert made.wrap_model("model") == ("model", "run of one")
    with pytest.raises(PluginError, match=r"rollout is claimed by both one .* and two"):
        gather({"one": Writes(), "two": Writes()}, in_memory)


def test_rewards_of_completions_need_a_trainer_that_writes_text(in_memory: Any) -> None:
    short = plugin(completion_rewards=[CompletionReward("short", score), CompletionReward("short", score)])
    with pytest.raises(PluginError, match=r"the completion reward flow\.short is contributed twice"):
        gather({"flow": short}, in_memory)
    one = plugin(completion_rewards=CompletionReward("one", score))
    with pytest.raises(BindingError, match=r"cannot bind completion reward flow\.one: it writes no text"):
        gather({"flow": one}, in_memory, without("completion_rewards", reason="it writes no text"))


WHO = "Asked for by budwood-flow 1.0."
AUTHOR = f"{WHO} Report this to its author."
SWITCH = f"{WHO} Choose another trainer, or switch this contribution off."
MISFITS: dict[str, tuple[dict[str, Any], Capabilities, type[BudwoodError], str]] = {
    "wrong type": (
        {"flow": plugin(reward_terms=[term("a"), 3])},
        EVERYTHING,
        PluginError,
        f"plugins.flow: its hook reward_terms returned a value of type int, expected RewardTerm. {AUTHOR}",
    ),
    "class instead of object": (
        {"flow": plugin(callbacks=[Watch])},
        EVERYTHING,
        PluginError,
        f"plugins.flow: its hook callbacks returned the class Watch, expected RunCallback. {AUTHOR}",
    ),
    "mapping instead of list": (
        {"flow": plugin(evaluators={"a": Evaluator("a", 1, evaluate)})},
        EVERYTHING,
        PluginError,
        f"plugins.flow: its hook evaluators returned a value of type dict, expected Evaluator. {AUTHOR}",
    ),
    "no combination": (
        {"flow": plugin(reward_combination=print)},
        EVERYTHING,
        PluginError,
        "plugins.flow: its hook reward_combination returned a value of type builtin_function_or_method, "
        f"expected RewardCombination. {AUTHOR}",
    ),
    "no objective": (
        {"flow": plugin(objective=gae)},
        EVERYTHING,
        PluginError,
        f"plugins.flow: its hook objective returned a value of type function, expected Objective. {AUTHOR}",
    ),
    "no function": (
        {"flow": plugin(advantage=3)},
        EVERYTHING,
        PluginError,
        f"plugins.flow: its hook advantage returned a value of type int, expected callable. {AUTHOR}",
    ),
    "environment instead of factory": (
        {"flow": plugin(build_env={"train": "env", "eval": "env"})},
        EVERYTHING,
        PluginError,
        f"plugins.flow: its hook build_env returned a value of type str, expected callable. {AUTHOR}",
    ),
    "policy instead of factory": (
        {"flow": Wrapper(lambda run, inner: "policy"), "base": plugin(build_policy=make_policy)},
        EVERYTHING,
        PluginError,
        f"plugins.flow: its hook build_policy returned a value of type str, expected callable. {AUTHOR}",
    ),
    "nothing to wrap": (
        {"flow": Wrapper()},
        EVERYTHING,
        PluginError,
        f"plugins.flow: it wraps build_policy, but no plugin of this run builds a policy. {WHO} Add one.",
    ),
    "same name twice": (
        {"flow": plugin(reward_terms=[term("a"), term("a")], evaluators=[Evaluator("a", 1, evaluate)])},
        EVERYTHING,
        PluginError,
        f"plugins.flow: the reward term flow.a is contributed twice; names must be unique. {AUTHOR}",
    ),
    "no name": (
        {"flow": plugin(loss_terms=[LossTerm("näme", loss)])},
        EVERYTHING,
        PluginError,
        f"plugins.flow: 'näme' is no name for a loss term; use letters, digits and _ - . / : space. {AUTHOR}",
    ),
    "two claims": (
        {"flow": plugin(reward_combination=Combination()), "other": plugin(reward_combination=Combination())},
        EVERYTHING,
        PluginError,
        "plugins: reward_combination is claimed by both flow (budwood-flow 1.0) and other (budwood-other 1.0). "
        "Only one plugin may own it: remove one of them from the run.",
    ),
    "two environments": (
        {"flow": plugin(build_env={"eval": dict}), "other": plugin(build_env={"eval": dict})},
        EVERYTHING,
        PluginError,
        "plugins: build_env is claimed by both flow (budwood-flow 1.0) and other (budwood-other 1.0). "
        "Only one plugin may own it: remove one of them from the run.",
    ),
    "two policies": (
        {"flow": plugin(build_policy=make_policy), "other": plugin(build_policy=make_policy)},
        EVERYTHING,
        PluginError,
        "plugins: build_policy is claimed by both flow (budwood-flow 1.0) and other (budwood-other 1.0). "
        "Only one plugin may own it: remove one of them from the run.",
    ),
    "refused with its reason": (
        {"flow": plugin(loss_terms=[LossTerm("bc", loss, needs=frozenset({"x"})), LossTerm("kl", loss)])},
        without("loss_terms", reason="its losses are computed inside one private method"),
        BindingError,
        "plugins.flow: trainer rootstock/grow cannot bind loss terms flow.bc, flow.kl: "
        f"its losses are computed inside one private method. {SWITCH}",
    ),
    "refused without a reason": (
        {"flow": plugin(advantage=gae)},
        without("advantage"),
        BindingError,
        f"plugins.flow: trainer rootstock/grow cannot bind advantage gae: it has no seam for it. {SWITCH}",
    ),
    "refused environment wrapper": (
        {"flow": Wrapper(), "base": plugin(build_policy=make_policy)},
        without("build_env"),
        BindingError,
        f"plugins.flow: trainer rootstock/grow cannot bind environment wrapper: it has no seam for it. {SWITCH}",
    ),
    "loss input not offered": (
        {"flow": plugin(loss_terms=LossTerm("bc", loss, needs=frozenset({"logits", "log_prob", "hidden"})))},
        EVERYTHING,
        BindingError,
        "plugins.flow: loss term flow.bc needs `hidden`, `logits`; trainer rootstock/grow offers advantages, log_prob. "
        f"{WHO} Choose a trainer that offers it, or switch this contribution off.",
    ),
    "objective input not offered": (
        {"flow": plugin(objective=Objective("clip", loss, needs=frozenset({"logits"})))},
        EVERYTHING,
        BindingError,
        "plugins.flow: objective flow.clip needs `logits`; trainer rootstock/grow offers advantages, log_prob. "
        f"{WHO} Choose a trainer that offers it, or switch this contribution off.",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_misfits(in_memory: Callable[..., Active], case: str) -> None:
    plugins, capabilities, kind, expected = MISFITS[case]
    with pytest.raises(BudwoodError) as caught:
        gather(plugins, in_memory, capabilities)
    assert (type(caught.value), str(caught.value)) == (kind, expected)


def test_every_misfit_is_reported_at_once(in_memory: Any) -> None:
    class Raises:
        @hookimpl
        def evaluators(self, run: Any) -> Any:
            raise KeyError("x")

    flow = plugin(reward_terms=[3], loss_terms=[LossTerm("bc", loss, needs=frozenset({"logits"}))], advantage=gae)
    other = plugin(advantage=gae, callbacks=Watch())
    with pytest.raises(PluginError) as caught:
        gather({"flow": flow, "other": other, "raises": Raises()}, in_memory, without("callbacks", reason="too late"))
    lines = str(caught.value).split("\n")
    assert lines[0] == "5 contributions do not fit."
    assert [line.partition(". ")[0] for line in lines[1:]] == [
        "  - plugins.flow: its hook reward_terms returned a value of type int, expected RewardTerm",
        "  - plugins: advantage is claimed by both flow (budwood-flow 1.0) and other (budwood-other 1.0)",
        "  - plugins.raises: its hook evaluators raised KeyError: 'x'",
        "  - plugins.flow: loss term flow.bc needs `logits`; trainer rootstock/grow offers advantages, log_prob",
        "  - plugins.other: trainer rootstock/grow cannot bind callback Watch: too late",
    ]
    with pytest.raises(BindingError, match="2 contributions do not fit"):
        gather({"one": plugin(advantage=gae, callbacks=Watch())}, in_memory, without("advantage", "callbacks"))


def test_a_wrapped_environment_that_is_no_factory(in_memory: Any) -> None:
    made = gather(
        {"flow": Wrapper(lambda run, inner: "env" if ":" in run else inner), "base": plugin(build_policy=make_policy)},
        in_memory,
    )
    assert made.wrap_env is not None
    with pytest.raises(PluginError) as caught:
        made.wrap_env(dict, "train")
    assert str(caught.value) == (
        "plugins.flow: build_env for train gave a value of type str once wrapped, "
        f"expected a callable that makes one environment. {WHO} Return a factory, not an environment."
    )
