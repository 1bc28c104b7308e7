"""An online run's environments, policy and processors, made by LeRobot's own functions, and the trainer around them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from lerobot.envs import preprocess_observation
from lerobot.envs.utils import NEW_ROLLOUT_OPTION, FreezeAfterEpisodeEnd

from budwood.api import (
    BindingError,
    ConfigError,
    Contributed,
    Contributions,
    NativePolicyFactory,
    Policy,
    PolicyFactory,
    Run,
    blamed,
)
from budwood.api.sharing import check_divided
from budwood_lerobot.config import EnvConfig, PolicyConfig
from budwood_lerobot.devices import check_precision, check_single_process, device_of
from budwood_lerobot.environments import numbered, vectors_of
from budwood_lerobot.features import misfit, unread
from budwood_lerobot.native import discover, flat, without_arguments
from budwood_lerobot.online import CRITIC_INPUTS
from budwood_lerobot.online.config import OnlineConfig
from budwood_lerobot.online.episodes import Episodes
from budwood_lerobot.online.neutral import Neutral
from budwood_lerobot.online.processors import Processors, tasks
from budwood_lerobot.online.shown import Show, Shown
from budwood_lerobot.online.trainer import OnlineTrainer
from budwood_lerobot.processors import UNREADABLE, processors_of


def build(run: Run, contributions: Contributions) -> OnlineTrainer:
    if not run.processes.several:
        check_single_process()
    config: OnlineConfig = run.trainer
    env = EnvConfig.model_validate(run.config["env"])
    by = _factory(config, contributions)
    device = device_of(run.device)
    check_precision(
        run.config.get("precision", "fp32"), None if config.policy is None else config.policy.native(device)
    )
    _check_needs(config, contributions)
    check_divided(env.n_envs, run.processes)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision("high" if run.config.get("precision") == "tf32" else "highest")
    random.seed(run.seed)
    np.random.seed(run.seed % 2**32)
    torch.manual_seed(run.seed)

    def make_episodes(n: int) -> Episodes:
        return _episodes(env, n)

    def make_shown(show: Show) -> Episodes:
        return _shown(env, show)

    rows = run.processes.part(env.n_envs)
    training = make_episodes(rows.stop - rows.start)
    numbered(training.vector, rows.start, env.n_envs)
    loaded = None if config.policy is None else _Native(config.policy, env, device)
    processors = _processors(env, loaded, device)
    training.begin(np.ones(training.n, dtype=bool), [run.seed] * training.n)
    seen = processors.observe(training.obs, tasks(training))
    if loaded is not None:
        loaded.check(seen)

    def make_policy() -> Policy:
        with blamed(by, "build_policy"):
            if loaded is not None:
                factory: Any = by.value
                made: Any = factory.wrap(loaded.policy())
            else:
                made = by.value(_space(seen), training.vector.single_action_space)
        return made.to(device) if isinstance(made, torch.nn.Module) else made  # type: ignore[return-value]

    neutral = Neutral(by, make_policy(), config.critic)
    return OnlineTrainer(
        run,
        contributions,
        native=neutral.policy if loaded is None else loaded.first,
        neutral=neutral,
        make_policy=make_policy,
        training=training,
        make_episodes=make_episodes,
        make_shown=make_shown,
        processors=processors,
        export_native=None if loaded is None else loaded.export,
    )


class _Native:
    """A policy of LeRobot with its processors. ``first`` is the one that is trained."""

    def __init__(self, section: PolicyConfig, env: EnvConfig, device: str) -> None:
        self._section, self._env, self._device = section, env, device
        saved = section.native(device)
        _check_history(saved)
        outputs = (
            None if hasattr(saved, "max_action_dim") else saved.output_features
        )  # else made anew for the environment
        found = misfit(saved, saved.input_features, outputs, env.native())
        if found:
            raise ConfigError(
                found, where="env", do="Name the environment that the policy is of, or a policy of this one"
            )
        self.first: Any = self._load()
        config = self.first.config
        self.before, self.after = processors_of(
            config,
            **(
                {}
                if config.pretrained_path is None
                else {"preprocessor_overrides": {"device_processor": {"device": device}}}
            ),
        )
        self._given = False

    def policy(self) -> Any:
        """The one that is trained at first, later others loaded like it."""
        given, self._given = self._given, True
        return self._load() if given else self.first

    def _load(self) -> Any:
        from lerobot.policies import make_policy

        try:
            with without_arguments():
                return make_policy(cfg=self._section.native(self._device), env_cfg=self._env.native())
        except (ImportError, AttributeError, RuntimeError, *UNREADABLE) as error:
            raise ConfigError(f"LeRobot cannot make the policy: {flat(error)}", where="trainer.policy") from error

    def check(self, seen: Mapping[str, torch.Tensor]) -> None:
        config = self.first.config
        missing = unread(config.input_features, seen, fills=hasattr(config, "empty_cameras"))
        if missing:
            raise ConfigError(
                f"the policy {config.type} reads {', '.join(missing)}, and the environment gives "
                f"{', '.join(sorted(seen))}",
                where="trainer.policy",
                do="Choose an environment, or its obs_type, that gives what the policy was trained on",
            )

    def export(self, folder: Path) -> Path:
        target = folder / "pretrained_model"
        self.first.save_pretrained(target)
        self.before.save_pretrained(target)
        self.after.save_pretrained(target)
        return target


def _check_history(config: Any) -> None:
    """:raises ConfigError: the policy reads more than the last observation."""
    if config.n_obs_steps > 1:
        raise ConfigError(
            f"the policy {config.type} reads the last {config.n_obs_steps} observations (n_obs_steps), and this loop shows and "
            "keeps one for each decision: what happened between two decisions, inside a chunk, is never observed",
            where="trainer.policy",
            do="Set n_obs_steps: 1 and train the policy so, or give it to algo: offline, which has histories",
        )


def _factory(config: OnlineConfig, contributions: Contributions) -> Contributed[PolicyFactory]:
    by = contributions.policy
    if by is None:
        raise BindingError(
            "LeRobot's policies tell no probability of what they do, and this loop learns from it",
            where="trainer.algo",
            do="Name a plugin under plugins whose build_policy makes or wraps one, or use algo: offline",
        )
    if config.policy is not None and not isinstance(by.value, NativePolicyFactory):
        raise BindingError(
            "the plugin makes a policy of its own and wraps none of LeRobot's",
            where="trainer.policy",
            who=by.who,
            do="Leave trainer.policy out",
        )
    return by


def _check_needs(config: OnlineConfig, contributions: Contributions) -> None:
    """Without a critic a loss sees no values; what an adapter offers at all was checked by core."""
    claimed = contributions.objective
    for item in (*contributions.loss_terms, *(() if claimed is None else (claimed,))):
        missing = sorted(item.value.needs & CRITIC_INPUTS)
        if missing and not config.critic:
            raise BindingError(
                f"{item.plugin}.{item.value.name} needs {', '.join(missing)}, and advantage: group has no critic",
                where=f"plugins.{item.plugin}",
                who=item.who,
                do="Use advantage: gae",
            )


def _episodes(section: EnvConfig, n: int) -> Episodes:
    """``n`` environments of the one task that the section names.

    Where they run in this process they are frozen between their episodes by LeRobot's own wrapper, as in its evaluations.
    """
    discover(section.discover_packages_path)
    vectors: list[Any] = [vector for tasks_of in vectors_of(section, n).values() for vector in tasks_of.values()]
    if len(vectors) != 1:
        for vector in vectors:
            vector.close()
        raise ConfigError(
            f"{section.type} makes {len(vectors)} tasks, and the loop learns one",
            where="env",
            do="Name one task, such as task: libero_spatial with task_ids: [0]",
        )
    (vector,) = vectors
    if not isinstance(vector.single_action_space, spaces.Box):
        raise ConfigError(f"the actions of {section.type} are {vector.single_action_space}, no Box", where="env.type")
    if isinstance(vector, SyncVectorEnv):
        vector.envs = [FreezeAfterEpisodeEnd(env) for env in vector.envs]
    return Episodes(vector, {NEW_ROLLOUT_OPTION: True})


def _shown(section: EnvConfig, show: Show) -> Episodes:
    """One environment, whose pictures ``show`` gets."""
    episodes = _episodes(section.model_copy(update={"use_async_envs": False}), 1)
    vector = episodes.vector
    if not isinstance(vector, SyncVectorEnv) or vector.envs[0].render_mode != "rgb_array":
        vector.close()
        raise ConfigError(
            f"{section.type} gives no pictures to film: it is not made with render_mode: rgb_array in this process",
            where="env.type",
            do="Have its EnvConfig make it so, as most of LeRobot's own do by gym_kwargs, or film nothing",
        )
    (frozen,) = vector.envs
    assert isinstance(frozen, FreezeAfterEpisodeEnd)
    vector.envs = [FreezeAfterEpisodeEnd(Shown(frozen.env, show))]  # inside, where the reset after its end never comes
    return episodes


def _processors(section: EnvConfig, loaded: _Native | None, device: str) -> Processors:
    config = section.native()
    if loaded is None:
        before, after = config.get_env_processors()
        return Processors(preprocess_observation, before, after, device=device)
    from lerobot.envs import make_env_pre_post_processors

    before, after = make_env_pre_post_processors(env_cfg=config, policy_cfg=loaded.first.config)
    return Processors(preprocess_observation, before, after, loaded.before, loaded.after, device)


def _space(seen: Mapping[str, torch.Tensor]) -> spaces.Dict:
    """The space of one observation as a policy sees it: images in [0, 1], channel first, everything else unbounded."""

    def box(key: str, value: torch.Tensor) -> spaces.Box:
        low, high = (0.0, 1.0) if key.startswith("observation.image") else (-np.inf, np.inf)
        return spaces.Box(low, high, tuple(value.shape[1:]), np.float32)

    return spaces.Dict({key: box(key, value) for key, value in seen.items()})
