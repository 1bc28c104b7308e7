"""Contributions at TRL's seams: what reaches them, what comes of it, and who is named when it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Nowhere, Vowels, parameters, same, vowels
from transformers import TrainerCallback

from budwood.api import (
    BindingError,
    CompletionReward,
    Completions,
    ConfigError,
    Contributed,
    ContributionError,
    Contributions,
    EvalReport,
    Evaluator,
    Generated,
    GenerationRequest,
    LossTerm,
    RewardTerm,
    Run,
    RunCallback,
    ScoredCompletions,
    TermColumn,
    hookimpl,
)
from budwood.rhythm import Rhythm
from budwood.session import Session


def fit(made: Any, contributions: Contributions | None = None, rhythm: Rhythm | None = None) -> Nowhere:
    memory = Nowhere()
    session = Session(made, contributions or Contributions(), memory, memory, rhythm or Rhythm())
    made.fit(session)
    session.finish()
    return memory


def logged(made: Any, name: str) -> list[float]:
    return [row[name] for row in made.native.state.log_history if name in row]


def plugin(**given: Any) -> Any:
    """A plugin from what its hooks give."""

    def hook(value: Any) -> Any:
        def give(self: Any, run: Run) -> Any:
            return value

        return give

    methods = {}
    for name, value in given.items():
        method = hook(value)
        method.__name__ = name
        methods[name] = hookimpl(method)
    return type("Plugin", (), methods)()


# ---- rewards ---------------------------------------------------------------------------------------------------------


def test_a_reward_sees_its_batch_and_is_weighed_as_declared(trainer: Any) -> None:
    seen: list[Completions] = []

    def answers(batch: Completions) -> list[float | None]:
        seen.append(batch)
        batch.log("share", 0.25)
        return [None if row % 2 else 1.0 for row in range(len(batch.texts))]

    given = [
        CompletionReward("one", lambda b: np.full(len(b.texts), 3.0), 2.0),
        CompletionReward("two", answers, weight=4.0),
    ]
    made = trainer("grpo", {"words": plugin(completion_rewards=given)}, steps=2)
    fit(made)
    # rows with both: 2 x 3 + 4 x 1, rows where the second does not apply: 2 x 3
    assert logged(made, "reward") == pytest.approx([8.0, 8.0])
    assert logged(made, "rewards/words.one/mean") == [3.0, 3.0]
    assert logged(made, "rewards/words.two/mean") == [1.0, 1.0]
    assert logged(made, "words/share") == [0.25, 0.25]
    first = seen[0]
    assert (first.step, seen[1].step) == (0, 1)
    assert len(first.prompts) == len(first.texts) == len(first.ids) == 4
    assert first.columns["answer"] == [next(iter(first.columns["answer"]))] * 4, "a group has one prompt"
    decoded = made.native.processing_class.batch_decode(first.ids, skip_special_tokens=True)
    assert list(first.texts) == decoded


def test_conversations_reach_a_reward_as_text(trainer: Any) -> None:
    class Talks(Vowels):
        @hookimpl(wrapper=True)
        def build_dataset(self, run: Run, role: str) -> Any:
            rows = yield
            return rows.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})

        @hookimpl
        def completion_rewards(self, run: Run) -> Any:
            return CompletionReward("vowels", keep)

    seen: list[Completions] = []

    def keep(batch: Completions) -> list[float | None]:
        seen.append(batch)
        return vowels(batch)

    fit(trainer("grpo", {"words": Talks()}, steps=1))
    assert all(isinstance(text, str) for text in seen[0].texts)
    assert seen[0].prompts[0][0]["role"] == "user"


class Linear:
    """Weights that a callback changes: r = sum of w x column."""

    needs_obs = False

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.version, self.wanted, self.names = 0, dict(weights), ()

    def bind(self, columns: Any) -> None:
        self.names = tuple(column.name for column in columns)

    @property
    def column_weights(self) -> Any:
        return np.array([self.wanted.get(name, 0.0) for name in self.names])

    def __call__(self, terms: Any, obs: Any) -> Any:
        return terms @ self.column_weights


class Reweighs(RunCallback):
    def __init__(self, combination: Linear) -> None:
        self.combination = combination

    def on_update_end(self, control: Any) -> None:
        self.combination.wanted["words.low"] = 10.0
        self.combination.version += 1


@pytest.mark.parametrize("algo", ["grpo", "rloo"])
def test_a_combination_weighs_trls_columns_and_may_change_its_mind(trainer: Any, algo: str) -> None:
    given = [CompletionReward(name, lambda b, v=v: [v] * len(b.texts)) for name, v in (("low", 1.0), ("high", 100.0))]
    combination = Linear({"words.low": 1.0, "words.high": 0.5})
    callback = Reweighs(combination)
    plugins = {"words": plugin(completion_rewards=given), "weighs": plugin(reward_combination=combination)}
    made = trainer(algo, plugins, steps=3)
    fit(made, Contributions(callbacks=[Contributed(callback, "weighs", "budwood-weighs 1.0")]))
    assert logged(made, "reward") == pytest.approx([51.0, 60.0, 60.0])
    assert combination.names == ("env.reward", "words.low", "words.high")


def test_a_term_takes_over_the_reward_it_reads_and_computes_from_others(trainer: Any) -> None:
    rewards = plugin(
        completion_rewards=[CompletionReward("length", lambda b: [2.0] * len(b.texts)), CompletionReward("v", vowels)]
    )
    double = RewardTerm("double", fn=lambda batch: 2 * batch.info("words.length"), weight=0.5)
    terms = plugin(reward_terms=[RewardTerm("long", info_key="words.length", weight=3.0), double])
    made = trainer("grpo", {"words": rewards, "shapes": terms}, steps=1)
    assert made.columns.columns == [
        TermColumn("shapes.long", 3.0), TermColumn("words.v", 1.0), TermColumn("shapes.double", 0.5),
    ]  # fmt: skip
    fit(made)
    assert logged(made, "rewards/shapes.double/mean") == [4.0]
    misread = plugin(reward_terms=[RewardTerm("x", info_key="words.lenght")])
    with pytest.raises(
        BindingError, match=r"'words.lenght' \(did you mean 'words.length'\?\).* there are words.length, words.v"
    ):
        trainer("grpo", {"words": rewards, "shapes": misread})


def test_no_reward_and_weights_that_cannot_be_copied(trainer: Any) -> None:
    with pytest.raises(ConfigError, match="GRPOTrainer has no reward to learn from"):
        trainer("grpo", {})

    class Bent(Linear):
        needs_obs = True

    with pytest.raises(BindingError, match=r"Bent is no weighted sum.*Asked for by budwood-weighs 1.0"):
        trainer("grpo", {"words": Vowels(), "weighs": plugin(reward_combination=Bent({}))})


def raises(batch: Any) -> Any:
    raise KeyError("gold")


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda batch: [1.0], "words.odd gave 1 rewards for 4 completions"),
        (lambda batch: [float("nan")] * 4, "words.odd gave nan for completion 0"),
        (lambda batch: [1.0, float("inf"), 1.0, 1.0], "words.odd gave inf for completion 1"),
        (raises, "its completion reward odd raised KeyError: 'gold'"),
    ],
)
def test_a_reward_that_misbehaves_is_named(trainer: Any, fn: Any, said: str) -> None:
    with pytest.raises(ContributionError) as caught:
        fit(trainer("grpo", {"words": plugin(completion_rewards=CompletionReward("odd", fn))}))
    assert said in str(caught.value)
    assert "plugins.words" in str(caught.value)
    assert "budwood-words 1.0" in str(caught.value)


# ---- losses ----------------------------------------------------------------------------------------------------------


def one(inputs: Any) -> torch.Tensor:
    return 0.0 * next(inputs.policy.parameters()).sum() + 1.0


@pytest.mark.parametrize("algo", ["grpo", "rloo", "dpo", "sft", "reward", "kto"])
def test_a_loss_term_counts_once_a_step_however_often_gradients_are_summed(trainer: Any, algo: str) -> None:
    plugins = {} if algo not in ("grpo", "rloo") else {"words": Vowels()}
    term = plugin(loss_terms=LossTerm("one", one, weight=0.5, needs=frozenset({"policy"})))
    plain, extended = (
        trainer(algo, more, steps=1, gradient_accumulation_steps=2) for more in (plugins, {**plugins, "x": term})
    )
    fit(plain)
    fit(extended)
    assert logged(extended, "loss")[0] - logged(plain, "loss")[0] == pytest.approx(0.5, abs=1e-4)
    assert logged(extended, "losses/x.one") == [1.0]


def test_a_loss_term_moves_the_policy_by_its_own_gradient(trainer: Any) -> None:
    """With all advantages 0 and plain SGD only the term is left: the step is -lr x weight x its gradient."""
    term = LossTerm(
        "norm", lambda inputs: sum((p**2).sum() for p in inputs.policy.parameters()), 0.25, frozenset({"policy"})
    )
    given = plugin(
        loss_terms=term,
        completion_rewards=CompletionReward("v", vowels),
        completion_advantage=lambda scored: np.zeros_like(scored.advantages),
    )
    made = trainer("grpo", {"x": given}, steps=1, optim="sgd", learning_rate=0.1, max_grad_norm=0.0, weight_decay=0.0,
                   lr_scheduler_type="constant")  # fmt: skip
    before = parameters(made.native)
    fit(made)
    for name, value in parameters(made.native).items():
        torch.testing.assert_close(value, before[name] * (1 - 0.1 * 0.25 * 2), rtol=1e-5, atol=1e-7)


def test_a_loss_term_sees_the_tokens(trainer: Any) -> None:
    shapes: list[Any] = []

    def look(inputs: Any) -> torch.Tensor:
        shapes.append([tuple(getattr(inputs, n).shape) for n in ("log_prob", "entropy", "mask", "advantages")])
        assert inputs.log_prob.requires_grad
        assert set(inputs.batch) >= {"prompt_ids", "completion_ids"}
        return inputs.log_prob.sum() * 0.0

    needs = frozenset({"log_prob", "entropy", "mask", "advantages", "batch"})
    fit(trainer("rloo", {"words": Vowels(), "x": plugin(loss_terms=LossTerm("look", look, needs=needs))}, steps=1))
    (log_prob, entropy, mask, advantages) = shapes[0]
    assert log_prob == entropy == mask
    assert advantages == (4,)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda inputs: torch.zeros(3), "loss term odd gave (3,), expected a scalar tensor"),
        (lambda inputs: 1.0, "loss term odd gave float, expected a scalar tensor"),
        (lambda inputs: torch.tensor(float("nan")), "loss term odd is nan at step 0"),
        (lambda inputs: inputs.logits, "this trainer gives a loss no 'logits'; it gives batch, policy"),
    ],
)
def test_a_loss_term_that_misbehaves_is_named(trainer: Any, value: Any, said: str) -> None:
    with pytest.raises(ContributionError) as caught:
        fit(trainer("sft", {"x": plugin(loss_terms=LossTerm("odd", value))}))
    assert said in str(caught.value)
    assert "budwood-x 1.0" in str(caught.value)


def test_what_a_trainer_cannot_bind_is_refused_with_the_reason(trainer: Any) -> None:
    with pytest.raises(BindingError, match="RLOOTrainer takes no rollout_func: use GRPO"):
        trainer("rloo", {"words": Vowels(), "x": plugin(rollout=lambda request: None)})
    with pytest.raises(BindingError, match="needs `log_prob`; trainer SFTTrainer offers batch, policy"):
        trainer("sft", {"x": plugin(loss_terms=LossTerm("odd", one, needs=frozenset({"log_prob"})))})
    with pytest.raises(BindingError, match="completion_advantage scores completions"):
        trainer("grpo", {"words": Vowels(), "x": plugin(advantage=lambda inputs: None)})


# ---- generation ------------------------------------------------------------------------------------------------------


def test_advantages_are_scored_from_trls_matrix_and_may_be_one_a_token(trainer: Any) -> None:
    seen: list[ScoredCompletions] = []

    def spread(scored: ScoredCompletions) -> Any:
        seen.append(scored)
        return scored.advantages[:, None] * scored.mask

    given = plugin(
        completion_rewards=[CompletionReward("v", vowels), CompletionReward("none", lambda b: [None] * len(b.texts))],
        completion_advantage=spread,
    )
    made = trainer("grpo", {"x": given})
    fit(made)
    scored = seen[0]
    assert scored.columns == ("x.v", "x.none")
    assert (scored.rewards.shape, scored.group) == ((4, 2), 4)
    assert np.isnan(scored.rewards[:, 1]).all()
    rewards = scored.rewards[:, 0]
    np.testing.assert_allclose(scored.advantages, (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4), rtol=1e-5)
    plain = trainer("grpo", {"x": plugin(completion_rewards=given.completion_rewards(run=None))})
    fit(plain)
    torch.testing.assert_close(parameters(made.native), parameters(plain.native))


@pytest.mark.parametrize("made", [np.zeros(3), np.full(4, np.nan)])
def test_advantages_that_do_not_fit_are_named(trainer: Any, made: Any) -> None:
    with pytest.raises(ContributionError, match=r"expected .4,. or|not finite"):
        fit(trainer("grpo", {"words": Vowels(), "x": plugin(completion_advantage=lambda scored: made)}))


def test_a_rollout_writes_what_it_likes_and_a_decoder_serves_it(trainer: Any) -> None:
    asked: list[GenerationRequest] = []

    def decode(request: GenerationRequest) -> Generated:
        asked.append(request)
        letters = request.tokenizer("aei")["input_ids"]
        return Generated([[*letters, 2]] * len(request.prompt_ids), [[-1.0] * 4] * len(request.prompt_ids))

    def roll(request: GenerationRequest) -> Generated:
        drawn = request.generate(request.prompt_ids)
        ids = [[*ids[:-1], 40, 2] for ids in drawn.ids]
        return Generated(ids, mask=[[1, 1, 1, 0, 1]] * len(ids), columns={"turns": [7] * len(ids)})

    batches: list[Completions] = []

    def score(batch: Completions) -> list[float | None]:
        batches.append(batch)
        return vowels(batch)

    given = plugin(completion_rewards=CompletionReward("v", score), rollout=roll)
    made = trainer("grpo", {"x": given, "y": plugin(decoder=decode)}, steps=1)
    fit(made)
    assert batches[0].columns["turns"] == [7] * 4
    assert all(text.startswith("aei") and len(text) == 4 for text in batches[0].texts)
    assert asked[0].training
    assert asked[0].settings["max_new_tokens"] == 6
    assert logged(made, "completions/mean_length") == [4.0], "what the policy did not write does not count"


@pytest.mark.parametrize(
    ("generated", "said"),
    [
        (Generated([[2]] * 3), "gave 3 ids for 4 prompts"),
        (Generated([[]] * 4), "gave no token for prompt 0"),
        (Generated([[5, 2]] * 4, mask=[[1]] * 4), "gave 1 mask for the 2 tokens of row 0"),
        (Generated([[2]] * 4, columns={"prompt": [1] * 4}), "columns that TRL has itself: prompt"),
        ([[2]] * 4, "returned a value of type list, expected Generated"),
    ],
)
def test_a_rollout_that_does_not_fit_is_named(trainer: Any, generated: Any, said: str) -> None:
    with pytest.raises(ContributionError) as caught:
        fit(trainer("grpo", {"words": Vowels(), "x": plugin(rollout=lambda request: generated)}))
    assert said in str(caught.value)
    assert "budwood-x 1.0" in str(caught.value)


# ---- evaluation, resets ----------------------------------------------------------------------------------------------


class Losses(RunCallback):
    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_eval_metrics(self, control: Any, metrics: Mapping[str, float]) -> None:
        self.seen.append((control.steps, metrics["eval/loss"]))


@pytest.mark.parametrize("algo", ["grpo", "sft"])
def test_evaluations_leave_no_trace_in_the_training(trainer: Any, rows_file: Any, algo: str) -> None:
    held_out = {"dataset": {"eval": str(rows_file(algo, 8))}}
    watched = trainer(algo, sections=held_out, per_device_eval_batch_size=8)
    losses = Losses()
    contributions = Contributions(
        callbacks=[Contributed(losses, "x", "budwood-x 1.0")],
        evaluators=[
            Contributed(Evaluator("probe", 1, lambda control: EvalReport({"steps": control.steps})), "x", "x 1")
        ],
    )
    memory = fit(watched, contributions, Rhythm(1, 1))
    alone = trainer(algo)
    fit(alone)
    assert same(parameters(watched.native), parameters(alone.native))
    assert [step for step, _ in losses.seen] == [1, 2, 3]
    assert len({loss for _, loss in losses.seen}) > 1 or algo == "grpo"
    assert [row["x/steps"] for _, row in memory.records if "x/steps" in row] == [1, 2, 3]
    assert not any("runtime" in name for _, row in memory.records for name in row)


def test_completions_are_episodes_of_one_step(trainer: Any) -> None:
    made = trainer("grpo", steps=2)
    batches: list[Any] = []

    def observe(batch: Any) -> None:
        batches.append(([info["env_index"] for info in batch.infos], batch.info("words.vowels")))

    before = torch.get_rng_state()
    first = made.evaluate(6, 11, observe)
    assert torch.equal(torch.get_rng_state(), before)
    again, other = made.evaluate(6, 11), made.evaluate(6, 12)
    np.testing.assert_array_equal(first.returns, again.returns)
    assert (first.returns != other.returns).any()
    assert [rows for rows, _ in batches] == [[0, 1, 2, 3], [4, 5]]
    np.testing.assert_allclose(np.concatenate([values for _, values in batches]), first.returns, rtol=1e-6)
    with pytest.raises(ContributionError, match="SFTTrainer has no episodes"):
        trainer("sft").evaluate(2, 0)


def test_a_reset_goes_back_to_the_first_parameters(trainer: Any) -> None:
    class Resets(RunCallback):
        def on_update_end(self, control: Any) -> None:
            if control.steps == 2:
                control.reset_policy(5)

    class Looks(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            begun.append((parameters(made.native), len(made.native.optimizer.optimizer.state)))

    made = trainer("sft", {"x": plugin(callbacks=Resets())}, steps=3, lr_scheduler_type="constant")
    before = parameters(made.native)
    begun: list[Any] = []
    made.native.add_callback(Looks())
    fit(made, Contributions(callbacks=[Contributed(Resets(), "x", "budwood-x 1.0")]))
    assert [same(found, before) for found, _ in begun] == [True, False, True]
    assert [held > 0 for _, held in begun] == [False, True, False], "the optimiser forgets"
    assert not same(parameters(made.native), before)
