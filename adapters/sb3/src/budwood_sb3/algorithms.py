"""The algorithms of Stable-Baselines3 and sb3-contrib by name, and what budwood can bind to each.

Importing this module imports neither of them: classes are looked up when a run needs one.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from budwood.api import Capabilities, ConfigError, Seam

if TYPE_CHECKING:
    from gymnasium import Space
    from stable_baselines3.common.base_class import BaseAlgorithm

Algo = Literal[
    "ppo", "a2c", "sac", "td3", "ddpg", "dqn", "recurrent_ppo", "maskable_ppo", "trpo", "qrdqn", "tqc", "crossq", "ars"
]

OWNED: Mapping[str, str] = {
    "env": "budwood builds the environments: use the section env",
    "policy": "write it beside algo, as trainer.policy",
    "seed": "the run has one seed: use the top-level key seed",
    "device": "the run has one device: use the top-level key device",
    "verbose": "budwood shows the progress",
    "tensorboard_log": "metrics go to the journal and to MLflow: use the section tracking",
    "rollout_buffer_class": "it is a class, and a configuration holds plain values",
    "replay_buffer_class": "it is a class, and a configuration holds plain values",
    "_init_setup_model": "it is private to Stable-Baselines3",
}
"""Constructor arguments that a configuration may not set, and why."""

LOSS_INPUTS_ON_POLICY = frozenset(
    (
        "obs", "actions", "log_prob", "old_log_prob", "advantages", "returns", "values", "old_values", "entropy",
        "clip_range", "policy", "share",
    )
)  # fmt: skip
LOSS_INPUTS_SAC = frozenset(
    (
        "obs", "actions", "log_prob", "replay_actions", "next_obs", "rewards", "dones", "q_values", "ent_coef", "policy",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Algorithm:
    """One algorithm: where its class lives, which action spaces it takes and which update of ours it may be given."""

    name: str
    module: str
    attribute: str
    on_policy: bool
    actions: tuple[str, ...]
    policies: tuple[str, str, str] = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")
    update: bool = False
    neutral_policy: bool = False

    def load(self) -> type[BaseAlgorithm]:
        cls: type[BaseAlgorithm] = getattr(importlib.import_module(self.module), self.attribute)
        return cls


ANY_ACTION = ("Box", "Discrete", "MultiDiscrete", "MultiBinary")
LSTM = ("MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy")

ALGORITHMS: Mapping[str, Algorithm] = {
    item.name: item
    for item in (
        Algorithm("ppo", "stable_baselines3", "PPO", True, ANY_ACTION, update=True, neutral_policy=True),
        Algorithm("a2c", "stable_baselines3", "A2C", True, ANY_ACTION, update=True, neutral_policy=True),
        Algorithm("sac", "stable_baselines3", "SAC", False, ("Box",), update=True),
        Algorithm("td3", "stable_baselines3", "TD3", False, ("Box",)),
        Algorithm("ddpg", "stable_baselines3", "DDPG", False, ("Box",)),
        Algorithm("dqn", "stable_baselines3", "DQN", False, ("Discrete",)),
        Algorithm("recurrent_ppo", "sb3_contrib", "RecurrentPPO", True, ANY_ACTION, LSTM),
        Algorithm("maskable_ppo", "sb3_contrib", "MaskablePPO", True, ANY_ACTION[1:]),
        Algorithm("trpo", "sb3_contrib", "TRPO", True, ANY_ACTION),
        Algorithm("qrdqn", "sb3_contrib", "QRDQN", False, ("Discrete",)),
        Algorithm("tqc", "sb3_contrib", "TQC", False, ("Box",)),
        Algorithm("crossq", "sb3_contrib", "CrossQ", False, ("Box",), ("MlpPolicy",) * 3),
        Algorithm("ars", "sb3_contrib", "ARS", False, ("Box", "Discrete"), ("MlpPolicy",) * 3),
    )
}


def of_class(cls: type) -> Algorithm | None:
    """The algorithm whose class is ``cls`` or the nearest base of it."""
    known = {(item.module.split(".")[0], item.attribute): item for item in ALGORITHMS.values()}
    for base in cls.__mro__:
        found = known.get((base.__module__.split(".")[0], base.__name__))
        if found is not None:
            return found
    return None


def is_ars(cls: type) -> bool:
    """Whether ``cls`` is ARS, found by name so that only runs that use sb3-contrib import it."""
    found = of_class(cls)
    return found is not None and found.name == "ars"


def argument_problems(algorithm: Algorithm, args: Mapping[str, Any]) -> list[str]:
    """Every key of ``args`` that the constructor does not take, or that budwood owns; one sentence each."""
    allowed = [name for name in inspect.signature(algorithm.load()).parameters if name not in OWNED]
    problems = []
    for key in args:
        if key in OWNED:
            problems.append(f"{key!r} cannot be set here: {OWNED[key]}")
        elif key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else f"; it takes {', '.join(sorted(allowed))}"
            problems.append(f"{algorithm.attribute} takes no argument {key!r}{hint}")
    return problems


def default_policy(algorithm: Algorithm, observations: Space[Any]) -> str:
    """``MultiInputPolicy`` for Dict observations, ``CnnPolicy`` for images, ``MlpPolicy`` otherwise."""
    from gymnasium import spaces
    from stable_baselines3.common.preprocessing import is_image_space

    mlp, cnn, multi = algorithm.policies
    if isinstance(observations, spaces.Dict):
        return multi
    return cnn if is_image_space(observations) else mlp


def check_actions(algorithm: Algorithm, actions: Space[Any], env: str) -> None:
    kind = type(actions).__name__
    if kind not in algorithm.actions:
        fitting = [item.name for item in ALGORITHMS.values() if kind in item.actions]
        raise ConfigError(
            f"{algorithm.attribute} takes {' or '.join(algorithm.actions)} actions, and {env} has {kind} actions",
            where="trainer.algo",
            do=f"For {kind} actions use {', '.join(fitting)}" if fitting else "",
        )


TEXT = dict.fromkeys(
    ("completion_rewards", "completion_advantage", "rollout", "decoder", "build_dataset", "build_model"),
    "Stable-Baselines3 acts in environments, and has no language model and no rows to train on",
)


def capabilities(algorithm: Algorithm) -> Capabilities:
    """What a run that builds this algorithm can bind, and for everything else the reason it cannot."""
    name = algorithm.attribute
    if algorithm.name == "ars":
        return _ars()
    buffer = "TermRolloutBuffer" if algorithm.on_policy else "TermReplayBuffer"
    seams = {
        "reward_terms": Seam("TermVecEnv, between the environments and VecNormalize"),
        "reward_combination": Seam(f"TermVecEnv, and {buffer} for what is stored"),
        "build_env": Seam("factory of each environment, outside Monitor"),
        "callbacks": Seam("BaseCallback: start and end of a rollout, no event per step"),
        "evaluators": Seam("BaseCallback: between an update and the next rollout"),
    }
    refused = dict(TEXT)
    if algorithm.on_policy:
        seams["advantage"] = Seam("TermRolloutBuffer.compute_returns_and_advantage")
    else:
        refused["advantage"] = f"{name} learns from a replay buffer and computes no advantages"
    if algorithm.neutral_policy:
        seams["build_policy"] = Seam("policy class given to the constructor")
    else:
        refused["build_policy"] = _why_no_policy(algorithm)
    if algorithm.update:
        seams["loss_terms"] = Seam(f"{name}.train, overridden", "B")
        seams["objective"] = Seam(f"{name}.train, overridden", "B")
        inputs = LOSS_INPUTS_ON_POLICY if algorithm.on_policy else LOSS_INPUTS_SAC
        inputs = inputs - {"clip_range"} if algorithm.name == "a2c" else inputs
    else:
        reason = f"the update of {name} has no place for it: PPO, A2C and SAC have"
        refused |= {"loss_terms": reason, "objective": reason}
        inputs = frozenset()
    return Capabilities(name, seams, refused, inputs, rollouts=algorithm.on_policy, one_process=_why_alone(algorithm))


def _why_alone(algorithm: Algorithm) -> str:
    if not algorithm.on_policy:
        return f"{algorithm.attribute} draws from one replay buffer, and a part of it in each process is another sample"
    return (
        ""
        if algorithm.update
        else f"the update of {algorithm.attribute} has no place to sum gradients: PPO and A2C have"
    )


def _why_no_policy(algorithm: Algorithm) -> str:
    if algorithm.on_policy:
        return (
            f"{algorithm.attribute} calls its policy in ways that a neutral policy does not offer: PPO and A2C do not"
        )
    return f"the networks of {algorithm.attribute} are an actor and critics, not one actor-critic policy"


def _ars() -> Capabilities:
    reward = "ARS scores a candidate by the return that Monitor saw, before any reward term"
    gradient = "ARS has no loss, no advantages and no critic"
    seams = {
        "build_env": Seam("factory of each environment, outside Monitor"),
        "callbacks": Seam("ARS._do_one_update, extended", "C"),
        "evaluators": Seam("ARS._do_one_update, extended", "C"),
    }
    policy = "ARS perturbs the weights of a policy of its own, without log-probabilities or a critic"
    refused = TEXT | {"reward_terms": reward, "reward_combination": reward, "build_policy": policy}
    refused |= dict.fromkeys(("advantage", "loss_terms", "objective"), gradient)
    return Capabilities("ARS", seams, refused, one_process="ARS compares candidates, a whole population in one process")
