"""Beyond environments: the weights of several reward functions of a language trainer, by the same plugin.

``GRPO`` is a double of TRL's GRPOTrainer as far as a weighting of rewards can see it: one weight a function in a float32
tensor that may be overwritten, rewards summed over functions and then normalised within groups. Its generator is a bandit:
a completion is one of six answers. ``test_the_double_computes_what_trl_does`` holds the double to the real trainer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from budwood.api import BindingError, Evaluation, LinearCombination, StepBatch, TermColumn, WeightVector
from budwood_reward_shaping.combination import PLUGIN, WeightedTerms
from budwood_reward_shaping.config import ExploreConfig, OuterConfig, ShapingConfig
from budwood_reward_shaping.criteria import Criterion, measure
from budwood_reward_shaping.outer import OuterLoop
from budwood_reward_shaping.plugin import RewardShaping
from budwood_reward_shaping.terms import InfoTerm
from budwood_reward_shaping.weights import StaticWeights

ANSWERS = ("42", "Great question! 41", "Well, let me think, 43", "?", "It is what it is", "41")
REWARDS = {
    "plausible": (1.0, 0.6, 0.3, 0.0, 0.2, 0.5),
    "polite": (0.0, 1.0, 0.8, 0.3, 0.2, 0.5),
    "brief": (0.0, -0.1, -0.6, -0.2, -0.9, -0.4),
}
"""What every answer gets: politeness misleads, and with equal weights the second answer, which is wrong, is paid best."""
TERMS = [InfoTerm(name, name) for name in REWARDS]
COLUMNS = [TermColumn(f"{PLUGIN}.{name}", 1.0) for name in REWARDS]


def function(name: str) -> Callable[..., list[float]]:
    """A reward function as TRL calls it, by keyword and with whatever else it knows."""

    def reward(completions: list[str], **others: Any) -> list[float]:
        return [REWARDS[name][ANSWERS.index(text)] for text in completions]

    reward.__name__ = name
    return reward


class GRPO:
    """``step`` samples groups of completions and moves the logits (6,) along their group-relative policy gradient."""

    multi_objective_aggregation = "sum_then_normalize"
    prompts, num_generations, learning_rate = 4, 8, 0.5

    def __init__(self, reward_funcs: list[Callable[..., list[float]]], seed: int) -> None:
        self.reward_funcs = reward_funcs
        self.reward_weights = torch.ones(len(reward_funcs), dtype=torch.float32)
        self.completions = 0
        self.reset(seed)

    def reset(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.logits = torch.zeros(len(ANSWERS), requires_grad=True)

    def rewards_per_func(self, completions: list[str]) -> torch.Tensor:
        """(B, functions)"""
        return torch.tensor([f(completions=completions) for f in self.reward_funcs], dtype=torch.float32).T

    def advantages(self, rewards_per_func: torch.Tensor) -> torch.Tensor:
        """(B,)"""
        rewards = (rewards_per_func * self.reward_weights).nansum(dim=1).view(-1, self.num_generations)
        centred = rewards - rewards.mean(dim=1, keepdim=True)
        return (centred / (rewards.std(dim=1, keepdim=True) + 1e-4)).flatten()

    def step(self) -> None:
        probabilities = torch.softmax(self.logits.detach(), dim=0)
        count = self.prompts * self.num_generations
        drawn = torch.multinomial(probabilities, count, replacement=True, generator=self.generator)
        advantages = self.advantages(self.rewards_per_func([ANSWERS[i] for i in drawn]))
        (slope,) = torch.autograd.grad((torch.log_softmax(self.logits, dim=0)[drawn] * advantages).mean(), self.logits)
        with torch.no_grad():
            self.logits += self.learning_rate * slope
        self.completions += count


class Control:
    """What a callback sees of the trainer: an episode is a completion, its only step carries every function's reward."""

    n_envs, total_steps = 1, 10**9

    def __init__(self, trainer: GRPO) -> None:
        self.trainer = trainer
        self.env_steps = 0
        self.logged: list[dict[str, float]] = []
        self.stopped = False

    @property
    def steps(self) -> int:
        return self.trainer.completions

    def log(self, metrics: dict[str, float]) -> None:
        self.logged.append({name.removeprefix(f"{PLUGIN}/"): value for name, value in metrics.items()})

    def reset_policy(self, seed: int) -> None:
        self.trainer.reset(seed)

    def policy_state(self) -> dict[str, Any]:
        return {"logits": self.trainer.logits.detach().clone()}

    def load_policy(self, state: dict[str, Any]) -> None:
        self.trainer.logits = state["logits"].clone().requires_grad_()

    def stop(self, reason: str) -> None:
        self.stopped = True

    def note(self, text: str) -> None: ...

    def evaluate(self, episodes: int, seed: int, observer: Callable[[StepBatch], None]) -> Evaluation:
        generator = torch.Generator().manual_seed(seed)
        probabilities = torch.softmax(self.trainer.logits.detach(), dim=0)
        drawn = torch.multinomial(probabilities, episodes, replacement=True, generator=generator).tolist()
        batch = StepBatch()
        batch.infos = [
            {"env_index": i, "solved": float(answer == 0), **{name: given[answer] for name, given in REWARDS.items()}}
            for i, answer in enumerate(drawn)
        ]
        batch.dones = np.ones(episodes, dtype=bool)
        batch.timeouts, batch.rewards = np.zeros(episodes, dtype=bool), np.zeros(episodes)
        observer(batch)
        self.env_steps += episodes
        return Evaluation(np.zeros(episodes), np.ones(episodes, dtype=np.int64), episodes, seed)


def follow(combination: WeightedTerms, trainer: Any, columns: list[TermColumn] = COLUMNS) -> WeightVector:
    """The trainer's weights, overwritten in place whenever the combination has changed."""
    return WeightVector(combination, columns, lambda weights: trainer.reward_weights.copy_(torch.from_numpy(weights)))


def equal_weights(w_task: float = 0.0) -> WeightedTerms:
    return WeightedTerms(TERMS, np.ones(3), np.array([1.0, 2.0, 0.5]), w_task)


# ---- the contract ----------------------------------------------------------------------------------------------------


def test_the_combinations_weights_are_those_of_its_sum():
    combination = equal_weights(w_task=0.5)
    assert isinstance(combination, LinearCombination)
    columns = [
        TermColumn("env.reward", 1.0),
        TermColumn(f"{PLUGIN}.task", 1.0),
        *COLUMNS,
        TermColumn("other.bonus", 0.25),
    ]
    combination.bind(columns)
    assert combination.names == tuple(column.name for column in columns)
    np.testing.assert_allclose(combination.column_weights, [0.0, 0.5, 1.0, 2.0, 0.5, 0.25])
    combination.change(weights=np.array([3.0, 0.1, 1.0]))
    terms = np.random.default_rng(0).normal(size=(20, 6))
    np.testing.assert_allclose(combination(terms, None), terms @ combination.column_weights, rtol=1e-12)


def test_a_trainers_weights_follow_the_version():
    trainer, combination = GRPO([function(name) for name in REWARDS], seed=0), equal_weights()
    vector = follow(combination, trainer)
    assert trainer.reward_weights.tolist() == [1.0, 2.0, 0.5]
    assert not vector.follow()
    before = trainer.reward_weights
    combination.change(weights=np.array([2.0, 0.25, 4.0]))
    assert trainer.reward_weights.tolist() == [1.0, 2.0, 0.5], "not before it is asked to"
    assert vector.follow()
    assert trainer.reward_weights is before
    assert trainer.reward_weights.tolist() == [2.0, 0.5, 2.0]


def test_what_such_a_trainer_cannot_do_is_refused():
    class OfStates(WeightedTerms):
        needs_obs = True

    trainer = GRPO([function(name) for name in REWARDS], seed=0)
    with pytest.raises(BindingError, match="OfStates is no weighted sum with the same weights for every sample"):
        follow(OfStates(TERMS, np.ones(3), np.ones(3), 0.0), trainer)
    from budwood_reward_shaping.terms import NativeTerm

    native = WeightedTerms([NativeTerm(), *TERMS], np.ones(4), np.ones(4), 0.0)
    with pytest.raises(BindingError, match="own reward has the weight 1, and this trainer has no environment"):
        follow(native, trainer)


# ---- the search ------------------------------------------------------------------------------------------------------

UPDATES, EPISODES = 30, 64
SOLVED = Criterion("solved", lambda batch: batch.info("solved"), "final", ">=", 1.0)


def performance(trainer: GRPO, control: Control, seed: int) -> float:
    """P of a fresh generator after the inner loop under the trainer's weights."""
    trainer.reset(seed)
    for _ in range(UPDATES):
        trainer.step()
    return measure(control, [SOLVED], EPISODES, seed + 1).p


@pytest.mark.parametrize("seed", range(4))
def test_jumps_find_weights_under_which_the_generator_answers_right(seed, generators):
    trainer, combination = GRPO([function(name) for name in REWARDS], seed), equal_weights()
    vector, control = follow(combination, trainer), Control(trainer)
    space = StaticWeights(0.1, 10.0, combination.scale_free)
    assert space.scale_free
    explore = ExploreConfig(novelty="maxmin")
    loop = OuterLoop(combination.weights, space, OuterConfig(steps=20), explore, None, generators(seed))
    found = []
    while not loop.over:
        combination.change(weights=loop.propose())
        vector.follow()
        found.append(performance(trainer, control, seed=1000 * seed + len(found)))
        loop.report(found[-1], None)
    assert found[0] < 0.2, "equal weights"
    assert loop.solved
    assert np.mean(found[-2:]) >= 0.9


def search(seed: int, run_for: Callable[..., Any], baseline: str | None = None, **outer: Any) -> Control:
    """The whole plugin on the double, through its hooks: combination and callbacks, no rollouts. Up to 1,500 updates."""
    steps = UPDATES * GRPO.prompts * GRPO.num_generations
    section = {
        "terms": [{"name": name, "info": name} for name in REWARDS],
        "criteria": [{"name": "solved", "source": "solved", "stat": "final", "op": ">=", "threshold": 1.0}],
        "weights": {"w_task": 0.0, "scale": None},
        "outer": {"steps": 50, "inner_steps": steps, "episodes": EPISODES, "estimator": "score", **outer},
        "explore": {"probability": [0.0, 0.0]},
        "baseline": baseline,
    }
    run, plugin = run_for(ShapingConfig.model_validate(section), env_id=None, seed=seed), RewardShaping()
    trainer = GRPO([function(name) for name in REWARDS], seed)
    control, vector = Control(trainer), follow(plugin.reward_combination(run), trainer)
    (callback,) = plugin.callbacks(run)
    callback.on_run_start(control)
    while not control.stopped and len(control.logged) < 50:
        vector.follow()
        trainer.step()
        callback.on_update_end(control)
    callback.on_run_end(control)
    return control


@pytest.mark.parametrize("seed", range(4))
def test_the_score_estimate_climbs_without_jumps_or_rollouts(seed, run_for):
    """From performance alone, gradient steps take the generator from wrong answers to right ones."""
    control = search(seed, run_for, samples=4, sigma=0.2, lr=0.5)
    found = [row["P"] for row in control.logged]
    assert np.mean(found[:4]) < 0.3, "around equal weights"
    assert control.stopped
    assert min(found[-2:]) >= 0.9
    assert sum(row["explored"] for row in control.logged) == 0
    assert sum(row["stepped"] for row in control.logged) >= 1
    probabilities = torch.softmax(control.trainer.logits, dim=0)
    assert probabilities[0] > 0.8, "what is left is a policy that answers right"


def test_without_gradients_it_stays_at_equal_weights(run_for):
    control = search(0, run_for, baseline="constant_reset")
    assert max(row["P"] for row in control.logged) < 0.3


# ---- the real trainer ------------------------------------------------------------------------------------------------

needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="trl is not installed: pip install trl==1.16.0"
)


@pytest.fixture
def grpo(tmp_path):
    """(reward functions, prompts) -> TRL's trainer on a random two-layer Llama with a byte tokenizer; nothing is fetched."""
    from datasets import Dataset
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    def make(reward_funcs: list, **changes: Any) -> Any:
        letters = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
        bytewise = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(letters)}, merges=[]))
        bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bytewise.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bytewise, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
        )
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(letters), max_position_embeddings=64, **sizes, **ids))
        given = {"max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 4}
        quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
        cpu = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
        args = GRPOConfig(output_dir=str(tmp_path), **given, **quiet, **cpu, **changes)
        rows = Dataset.from_list([{"prompt": f"{i}+1="} for i in range(8)])
        return GRPOTrainer(model, reward_funcs=reward_funcs, args=args, processing_class=tokenizer, train_dataset=rows)

    return make


def fixed(name: str, rewards: list[float]) -> Callable[..., list[float]]:
    """A reward function that looks only at the place of a completion in its batch."""

    def reward(completions: list[str], **others: Any) -> list[float]:
        return [rewards[i % len(rewards)] for i in range(len(completions))]

    reward.__name__ = name
    return reward


@pytest.mark.slow
@needs_trl
def test_the_double_computes_what_trl_does(grpo):
    table = {"plausible": [1.0, 0.6, 0.3, 0.0], "polite": [0.0, 1.0, 0.8, 0.3], "brief": [0.0, -0.1, -0.6, -0.2]}
    functions = [fixed(name, rewards) for name, rewards in table.items()]
    real, double = grpo(functions), GRPO(functions, seed=0)
    double.num_generations = 4
    assert real.multi_objective_aggregation == double.multi_objective_aggregation
    assert real.reward_func_names == list(table)
    assert real.reward_weights.dtype == double.reward_weights.dtype
    for weights in ([1.0, 1.0, 1.0], [4.0, 0.1, 2.0]):
        combination = WeightedTerms(TERMS, np.array(weights), np.ones(3), 0.0)
        for trainer in (real, double):
            follow(combination, trainer)
        inputs = [{"prompt": f"{i // 4}+1="} for i in range(8)]
        given = real._generate_and_score_completions(inputs)["advantages"]
        expected = double.advantages(double.rewards_per_func(["?"] * 8))
        np.testing.assert_allclose(given.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@needs_trl
def test_overwritten_weights_change_the_next_reward_of_a_trl_run(grpo):
    from transformers import TrainerCallback

    real = grpo([fixed(name, [value]) for name, value in (("plausible", 1.0), ("polite", 10.0), ("brief", -0.5))])
    combination = WeightedTerms(TERMS, np.ones(3), np.ones(3), 0.0)
    vector = follow(combination, real)

    class Weigh(TrainerCallback):
        def on_step_end(self, args, state, control, **others):
            combination.change(weights=np.array([2.0, 0.5, 1.0]))
            vector.follow()

    real.add_callback(Weigh())
    real.train()
    rewards = [row["reward"] for row in real.state.log_history if "reward" in row]
    assert rewards == pytest.approx([10.5, 6.5])
