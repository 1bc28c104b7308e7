"""A Stable-Baselines3 model with the contributions of a run bound to its seams, as core drives it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from budwood.api import (
    ALONE,
    BindingError,
    ConfigError,
    Contributions,
    Evaluation,
    Processes,
    Run,
    StateTree,
    StepBatch,
    TrainerEvents,
)
from budwood_sb3 import envs, shards, state, together, vec
from budwood_sb3.algorithms import ALGORITHMS, Algorithm, check_actions, default_policy, is_ars
from budwood_sb3.ars import Boundaries, UpdateBridge, with_boundaries
from budwood_sb3.bridge import Bridge, EventWriter, RolloutBridge, StopTraining
from budwood_sb3.buffers import bind_replay, bind_rollout
from budwood_sb3.config import EnvConfig, NormalizeConfig, TrainerConfig, native_arguments
from budwood_sb3.evaluation import Evaluations
from budwood_sb3.policies import neutral_policy, with_rates
from budwood_sb3.reset import reset_policy
from budwood_sb3.together import environments
from budwood_sb3.updates import Losses, losses_of, with_update
from budwood_sb3.vec_sources import chosen


class SB3Trainer:
    """Implements :class:`budwood.api.Trainer`. ``make_eval(n)`` makes ``n`` evaluation environments."""

    def __init__(
        self,
        model: BaseAlgorithm,
        total_steps: int,
        make_eval: Callable[[int], VecEnv],
        *,
        save_replay_buffer: bool = True,
        processes: Processes = ALONE,
    ) -> None:
        self.native = model
        self.total_steps = total_steps
        self.n_envs = environments(model)
        self._processes = processes
        self._evaluations = Evaluations(model, make_eval)
        self._save_replay_buffer = save_replay_buffer
        self._restored: StateTree | None = None
        self._bridge: Bridge | None = None

    @property
    def unit(self) -> str:
        return "environment steps" if self.env_steps() is None else "decisions, each of one or more environment steps"

    def env_steps(self) -> int | None:
        return None if self.native.env is None else vec.env_steps(self.native.env)

    def fit(self, events: TrainerEvents) -> None:
        model = self.native
        model.set_logger(Logger(None, [EventWriter(events.log, vec.find(model.env))]))
        interval = inspect.signature(type(model).learn).parameters["log_interval"].default
        resumed = self._restored is not None
        self.attach(events, interval)
        with suppress(StopTraining):
            model.learn(
                self.total_steps - model.num_timesteps,
                callback=self._bridge,
                log_interval=None if isinstance(self._bridge, RolloutBridge) else interval,  # type: ignore[arg-type]
                reset_num_timesteps=not resumed,
            )

    def attach(self, events: TrainerEvents, log_interval: int | None) -> Bridge:
        """The callback that reports this model's boundaries to ``events``."""
        if isinstance(self.native, OnPolicyAlgorithm):
            self._bridge = RolloutBridge(events, self._begin, log_interval)
        elif isinstance(self.native, Boundaries):
            self._bridge = UpdateBridge(events, self._begin)
        else:
            self._bridge = Bridge(events, self._begin)
        return self._bridge

    def _begin(self) -> None:
        """What ``learn`` disturbed while setting up is put back as it was saved."""
        if self._restored is not None:
            state.restore_generators(self.native, self._restored)
            self._restored = None

    def evaluate(self, episodes: int, seed: int, observer: Callable[[StepBatch], None] | None = None) -> Evaluation:
        return self._evaluations.run(episodes, seed, observer)

    def reset_policy(self, seed: int) -> None:
        reset_policy(self.native, seed)

    def state_dict(self) -> StateTree:
        started = self._bridge is not None and self._bridge.rollout_started
        saved = state.model_state(self.native, replay_buffer=self._save_replay_buffer, rollout_started=started)
        if not self._processes.several:
            return saved
        parts = self._processes.to_first(shards.part_of(saved))
        return shards.joined(saved, parts) if parts else saved

    def load_state_dict(self, saved: StateTree) -> Sequence[str]:
        saved = shards.own(saved, self._processes, self.n_envs)
        notes = state.restore_model(self.native, saved)
        self._restored = saved
        return notes

    def policy_state(self) -> StateTree:
        return state.policy_state(self.native)

    def load_policy(self, saved: StateTree) -> None:
        state.load_policy(self.native, saved)

    def export(self, folder: Path) -> Path:
        """``model.zip`` as Stable-Baselines3 saves it, ``vecnormalize.pkl``, and the reward terms as ``terms.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "model.zip"
        self.native.save(path)
        normalize = self.native.get_vec_normalize_env()
        if normalize is not None:
            normalize.save(str(folder / "vecnormalize.pkl"))
        terms = vec.find(self.native.env)
        if terms is not None:
            columns = [{"name": column.name, "declared_weight": column.weight} for column in terms.columns]
            (folder / "terms.json").write_text(json.dumps(columns, indent=2) + "\n")
        return path

    def close(self) -> None:
        self._evaluations.close()
        if self.native.env is not None:
            self.native.env.close()


def build(run: Run, contributions: Contributions) -> SB3Trainer:
    """Environments, wrappers, model and buffers of a run, inside out."""
    trainer: TrainerConfig = run.trainer
    env = _with_fast(EnvConfig.model_validate(run.config["env"]), contributions)
    algorithm = ALGORITHMS[trainer.algo]
    _precision(run.config.get("precision", "fp32"))
    _check_device(run.device)
    if trainer.threads is not None:
        torch.set_num_threads(trainer.threads)

    bring = chosen(run)
    if run.processes.several:
        together.check(env, run.processes)
    part = run.processes.part(env.n_envs)
    count = part.stop - part.start
    venv = envs.make(env, run.seed, "train", count, contributions.wrap_env, bring, first=part.start)
    check_actions(algorithm, venv.action_space, env.id)
    venv = with_terms(venv, contributions, run.processes)
    if env.normalize is not None:
        venv = normalized(venv, env.normalize, trainer, contributions, run.processes)
    model = _model(algorithm, trainer, venv, run, contributions)
    bind_buffers(model, contributions)

    def make_eval(n: int) -> VecEnv:
        return envs.make(env, run.seed, "eval", n, contributions.wrap_env, bring)

    keep = run.config.get("checkpoint", {}).get("replay_buffer", True)
    return SB3Trainer(model, trainer.total_timesteps, make_eval, save_replay_buffer=keep, processes=run.processes)


def _with_fast(env: EnvConfig, contributions: Contributions) -> EnvConfig:
    """Reward terms pay for themselves with the copies that are left out, unless the configuration decides otherwise."""
    if env.fast is not None or env.vec != "dummy":
        return env
    return env.model_copy(update={"fast": has_terms(contributions)})


def has_terms(contributions: Contributions) -> bool:
    return bool(contributions.reward_terms) or contributions.reward_combination is not None


def with_terms(venv: VecEnv, contributions: Contributions, processes: Processes = ALONE) -> VecEnv:
    return vec.TermVecEnv(venv, contributions, processes) if has_terms(contributions) else venv


def normalized(
    venv: VecEnv, config: NormalizeConfig, trainer: TrainerConfig, contributions: Contributions, processes: Processes
) -> VecEnv:
    if config.reward:
        refuse_normalized_reward(contributions, "env.normalize.reward")
    gamma = config.gamma if config.gamma is not None else float(trainer.args.get("gamma", 0.99))
    made = VecNormalize(
        venv,
        norm_obs=config.obs,
        norm_reward=config.reward,
        clip_obs=config.clip_obs,
        clip_reward=config.clip_reward,
        gamma=gamma,
    )
    return together.share_statistics(made, processes) if processes.several else made


def refuse_normalized_reward(contributions: Contributions, where: str) -> None:
    claimed = contributions.reward_combination
    if claimed is not None:
        raise BindingError(
            "reward normalisation divides by the spread of past returns, which belongs to the old weights once the "
            "combination of the reward terms changes",
            where=where,
            who=claimed.who,
            do="Switch reward normalisation off; observations may be normalised",
        )


def _model(
    algorithm: Algorithm, config: TrainerConfig, venv: VecEnv, run: Run, contributions: Contributions
) -> BaseAlgorithm:
    cls: Any = algorithm.load()
    losses = losses_of(contributions)
    if run.processes.several:
        losses = losses or Losses(None, ())
    if losses is not None:
        cls = with_update(cls)
    if run.processes.several:
        cls = together.divided(cls, run.processes)
    if is_ars(cls):
        cls = with_boundaries(cls)
    policy: Any = config.policy or default_policy(algorithm, venv.observation_space)
    if contributions.policy is not None:
        policy = neutral_policy(contributions.policy)
        cls = with_rates(cls)
    arguments = native_arguments(config.args, venv.action_space.shape or ())
    try:
        model: BaseAlgorithm = cls(policy, venv, seed=run.seed, device=run.device, **arguments)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"{algorithm.attribute} refuses its arguments: {error}", where="trainer.args") from error
    _check_train_freq(model)
    if losses is not None:
        model._losses = losses  # type: ignore[attr-defined]
    return model


def _check_train_freq(model: BaseAlgorithm) -> None:
    frequency = getattr(model, "train_freq", None)
    if isinstance(frequency, TrainFreq) and frequency.unit is TrainFrequencyUnit.EPISODE and model.n_envs > 1:
        raise ConfigError(
            f"an update every {frequency.frequency} episodes needs a single environment, and there are {model.n_envs}",
            where="trainer.args.train_freq",
            do="Count steps instead, or set env.n_envs to 1",
        )


def bind_buffers(model: BaseAlgorithm, contributions: Contributions) -> None:
    source = vec.find(model.env)
    if isinstance(model, OnPolicyAlgorithm):
        if source is not None or contributions.advantage is not None:
            model.rollout_buffer = bind_rollout(model.rollout_buffer, source, contributions.advantage)
    elif source is not None:
        model.replay_buffer = bind_replay(model.replay_buffer, source)  # type: ignore[attr-defined]


def _precision(precision: str) -> None:
    if precision == "bf16":
        raise ConfigError(
            "Stable-Baselines3 keeps its networks and optimisers in float32 and offers no autocast",
            where="precision",
            do="Use fp32, or tf32 on a GPU",
        )
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def _check_device(device: str) -> None:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("PyTorch sees no CUDA device here", where="device", do="Use device: cpu or auto")
