"""What an environment remembers between two steps, as a state tree; restored, its next steps are the same to the bit.

An environment can be saved if every layer of it can: a wrapper or environment with ``state_dict`` / ``load_state_dict``,
or one of the tables below. A layer that is in neither and has attributes of its own may remember anything: the whole
environment counts as not savable, and its episodes restart on resume. Nothing here lies on the way of a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from budwood.api import CheckpointError, StateTree, storable
from budwood_sb3.generators import generator_state, set_generator, set_space_generators, space_generators

_GYM, _SB3, _CONTROL = "gymnasium.wrappers", "stable_baselines3.common", "gymnasium.envs.classic_control"
_MUJOCO = ("init_qpos", "init_qvel", "goal", "goal_pos", "cylinder_pos")  # Pusher writes into init_qpos on reset

REMEMBERS: dict[str, tuple[str, ...]] = {
    f"{_GYM}.common.TimeLimit": ("_elapsed_steps",),
    f"{_GYM}.common.OrderEnforcing": ("_has_reset",),
    f"{_GYM}.common.Autoreset": ("autoreset",),
    f"{_GYM}.common.PassiveEnvChecker": (),
    f"{_GYM}.stateful_action.StickyAction": ("last_action", "is_sticky_actions", "num_repeats", "repeats_taken"),
    f"{_GYM}.stateful_action.RepeatAction": (),
    f"{_GYM}.stateful_observation.DelayObservation": ("observation_queue",),
    f"{_GYM}.stateful_observation.FrameStackObservation": ("obs_queue", "padding_value"),
    f"{_GYM}.stateful_observation.MaxAndSkipObservation": (),
    f"{_GYM}.stateful_observation.NormalizeObservation": ("obs_rms", "_update_running_mean"),
    f"{_GYM}.stateful_observation.TimeAwareObservation": ("timesteps",),
    f"{_GYM}.stateful_reward.NormalizeReward": ("return_rms", "discounted_reward", "_update_running_mean"),
    f"{_GYM}.transform_action.ClipAction": (),
    f"{_GYM}.transform_action.RescaleAction": (),
    f"{_GYM}.transform_action.DiscretizeAction": (),
    f"{_GYM}.transform_observation.DiscretizeObservation": (),
    f"{_GYM}.transform_observation.DtypeObservation": (),
    f"{_GYM}.transform_observation.FilterObservation": (),
    f"{_GYM}.transform_observation.FlattenObservation": (),
    f"{_GYM}.transform_observation.GrayscaleObservation": (),
    f"{_GYM}.transform_observation.RescaleObservation": (),
    f"{_GYM}.transform_observation.ReshapeObservation": (),
    f"{_GYM}.transform_observation.ResizeObservation": (),
    f"{_GYM}.transform_reward.ClipReward": (),
    f"{_SB3}.monitor.Monitor": (
        "rewards", "needs_reset", "episode_returns", "episode_lengths", "episode_times", "total_steps", "current_reset_info",
    ),
    "sb3_contrib.common.wrappers.action_masker.ActionMasker": (),
    "sb3_contrib.common.wrappers.time_feature.TimeFeatureWrapper": ("_current_step",),
    f"{_SB3}.vec_env.vec_check_nan.VecCheckNan": (),
    f"{_SB3}.vec_env.vec_extract_dict_obs.VecExtractDictObs": (),
    f"{_SB3}.vec_env.vec_frame_stack.VecFrameStack": ("stacked_obs",),
    f"{_SB3}.vec_env.vec_monitor.VecMonitor": ("episode_count", "episode_returns", "episode_lengths"),
    f"{_SB3}.vec_env.vec_normalize.VecNormalize": ("obs_rms", "ret_rms", "returns", "old_obs", "old_reward"),
    f"{_SB3}.vec_env.vec_transpose.VecTransposeImage": (),
    f"{_CONTROL}.acrobot.AcrobotEnv": ("state",),
    f"{_CONTROL}.cartpole.CartPoleEnv": ("state", "steps_beyond_terminated"),
    f"{_CONTROL}.continuous_mountain_car.Continuous_MountainCarEnv": ("state",),
    f"{_CONTROL}.mountain_car.MountainCarEnv": ("state",),
    f"{_CONTROL}.pendulum.PendulumEnv": ("state", "last_u"),
    **{
        f"gymnasium.envs.mujoco.{module}_v{version}.{name}Env": _MUJOCO
        for version in (4, 5)
        for module, name in {
            "ant": "Ant", "half_cheetah": "HalfCheetah", "hopper": "Hopper", "humanoid": "Humanoid",
            "humanoidstandup": "HumanoidStandup", "inverted_double_pendulum": "InvertedDoublePendulum",
            "inverted_pendulum": "InvertedPendulum", "pusher": "Pusher", "reacher": "Reacher", "swimmer": "Swimmer",
            "walker2d": "Walker2d",
        }.items()
    },
}  # fmt: skip
"""Class -> the attributes that change while it is used. Subclasses are other classes."""

_ARENA = ("__", "efc_", "efm_", "iefc_", "iacc", "ifrc_")
"""Fields of mjData that live as long as a substep's contacts and constraints, in memory that is not even initialised."""

_BARE = {"env", "venv", "budwood_snapshot", "budwood_restore", "budwood_obstacle"}
_BARE |= {"_action_space", "_observation_space", "_metadata", "_cached_spec", "_render_mode"}


def attach(env: gym.Env) -> gym.Env:
    """Make the outermost environment of a factory savable from outside its process; returns the same object.

    ``VecEnv.env_method`` finds the three bound functions; no wrapper is added.
    """
    for name, function in (("snapshot", snapshot), ("restore", restore), ("obstacle", obstacle)):
        setattr(env, f"budwood_{name}", partial(function, env))
    return env


def snapshot(env: gym.Env) -> StateTree | None:
    """Everything ``env`` and its wrappers remember; None if one of them cannot tell (see :func:`obstacle`)."""
    if obstacle(env) is not None:
        return None
    base = env.unwrapped
    return {
        "layers": [_save(layer) for layer in _layers(env)],
        "random": generator_state(base._np_random),
        "seed": base._np_random_seed,
        "spaces": [space_generators(base.observation_space), space_generators(base.action_space)],
    }


def restore(env: gym.Env, state: StateTree) -> None:
    """Put ``env``, built like the one that was saved, into its state; it need not have been reset before."""
    base = env.unwrapped
    base._np_random = set_generator(base._np_random, state["random"])
    base._np_random_seed = state["seed"]
    set_space_generators(base.observation_space, state["spaces"][0])
    set_space_generators(base.action_space, state["spaces"][1])
    _load_layers(list(_layers(env)), state["layers"])


def obstacle(env: gym.Env) -> str | None:
    """Why ``env`` cannot be saved, as a clause; None if it can."""
    return next((f"{_name(layer)} gives no state_dict" for layer in _layers(env) if not _savable(layer)), None)


def snapshot_all(venv: VecEnv) -> StateTree | None:
    """The state of all environments behind ``venv`` and of the wrappers around it; None if anything cannot be saved."""
    if unsavable(venv):
        return None
    base = venv.unwrapped
    state: StateTree = {"layers": [_save(layer) for layer in _vec_layers(venv)], "base": _save_base(base)}
    if isinstance(base, DummyVecEnv):
        state["envs"] = [snapshot(env) for env in base.envs]
    elif isinstance(base, SubprocVecEnv):
        state["envs"] = base.env_method("budwood_snapshot")
    return state


def restore_all(venv: VecEnv, state: StateTree) -> None:
    """The inverse of :func:`snapshot_all`, on a vector of as many environments built alike."""
    base = venv.unwrapped
    if isinstance(base, DummyVecEnv):
        for env, saved in zip(base.envs, state["envs"], strict=True):
            restore(env, saved)
    elif isinstance(base, SubprocVecEnv):
        for index, saved in enumerate(state["envs"]):
            base.env_method("budwood_restore", saved, indices=index)
    _load_base(base, state["base"])
    _load_layers(list(_vec_layers(venv)), state["layers"])


def unsavable(venv: VecEnv) -> list[str]:
    """Why the environments behind ``venv`` cannot be saved, a clause for each different reason."""
    base = venv.unwrapped
    if isinstance(base, DummyVecEnv):
        reasons = [obstacle(env) for env in base.envs]
    elif isinstance(base, SubprocVecEnv):
        known = base.has_attr("budwood_obstacle")
        reasons = base.env_method("budwood_obstacle") if known else ["its processes give no state"]
    else:
        reasons = [None if _stateful(base) else f"{_name(base)} gives no state_dict"]
    reasons += [f"{_name(layer)} gives no state_dict" for layer in _vec_layers(venv) if not _savable(layer)]
    return list(dict.fromkeys(reason for reason in reasons if reason is not None))


def _layers(env: gym.Env) -> Iterator[gym.Env]:
    """Outermost wrapper first, the environment itself last."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _vec_layers(venv: VecEnv) -> Iterator[VecEnvWrapper]:
    while isinstance(venv, VecEnvWrapper):
        yield venv
        venv = venv.venv


def _name(layer: object) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _stateful(layer: object) -> bool:
    return hasattr(type(layer), "state_dict") and hasattr(type(layer), "load_state_dict")


def _savable(layer: object) -> bool:
    if _stateful(layer) or _name(layer) in REMEMBERS:
        return True
    return isinstance(layer, gym.Wrapper) and not set(vars(layer)) - _BARE


def _save(layer: Any) -> StateTree:
    if _stateful(layer):
        return {"type": _name(layer), "own": deepcopy(layer.state_dict())}
    names = [name for name in REMEMBERS.get(_name(layer), ()) if hasattr(layer, name)]
    state = {"type": _name(layer), "attributes": {name: plain(getattr(layer, name)) for name in names}}
    if _has_physics(layer):
        state["physics"] = _physics(layer)
    return state


def _load_layers(layers: list[Any], states: list[StateTree]) -> None:
    built, saved = [_name(layer) for layer in layers], [state["type"] for state in states]
    if built != saved:
        raise CheckpointError(
            f"the environment is built of {', '.join(built)}; the checkpoint's of {', '.join(saved)}",
            do="Resume with the versions and plugins the run was started with.",
        )
    for layer, state in zip(layers, states, strict=True):
        _load(layer, state)


def _load(layer: Any, state: StateTree) -> None:
    if "own" in state:
        layer.load_state_dict(deepcopy(state["own"]))
        return
    for name, saved in state["attributes"].items():
        setattr(layer, name, live(getattr(layer, name, None), saved))
    if "physics" in state:
        _set_physics(layer, state["physics"])
    if isinstance(layer, gym.wrappers.PassiveEnvChecker):  # it compares with objects that are gone: its checks are over
        layer.checked_reset = layer.checked_step = layer.checked_data_reuse = True


def plain(value: Any) -> Any:
    """A copy as a state tree: queues and lists of numbers, running statistics and frame stacks included."""
    if isinstance(value, deque):
        return [plain(item) for item in value]
    if isinstance(value, list) and {type(item) for item in value} in ({float}, {int}):
        return np.array(value)
    if _is_statistics(value):
        return {"mean": np.copy(value.mean), "var": np.copy(value.var), "count": value.count}
    if isinstance(value, StackedObservations):
        if isinstance(value.observation_space, gym.spaces.Dict):
            return {key: plain(part) for key, part in value.sub_stacked_observations.items()}
        return value.stacked_obs.copy()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return deepcopy(value)


def live(current: Any, saved: Any) -> Any:
    """What ``saved`` means where ``current`` stands now; the inverse of :func:`plain`."""
    if isinstance(current, deque):
        return deque(deepcopy(saved), maxlen=current.maxlen)
    if isinstance(current, list) and isinstance(saved, np.ndarray):
        return saved.tolist()
    if _is_statistics(current):
        current.mean, current.var, current.count = saved["mean"].copy(), saved["var"].copy(), saved["count"]
        return current
    if isinstance(current, StackedObservations):
        if isinstance(current.observation_space, gym.spaces.Dict):
            for key, part in saved.items():
                live(current.sub_stacked_observations[key], part)
        else:
            current.stacked_obs = saved.copy()
        return current
    if isinstance(current, dict) and isinstance(saved, dict):
        return {key: live(current.get(key), item) for key, item in saved.items()}
    return deepcopy(saved)


def _is_statistics(value: Any) -> bool:
    names = {base.__name__ for base in type(value).__mro__}
    return "RunningMeanStd" in names and hasattr(value, "update_from_moments")


def _save_base(base: VecEnv) -> StateTree:
    """What the vector itself keeps between two steps: pending seeds and options, last observations."""
    if not isinstance(base, DummyVecEnv | SubprocVecEnv):
        return _save(base)
    state: StateTree = {"seeds": list(base._seeds), "options": _if_storable(base._options, base.num_envs)}
    state["reset_infos"] = _if_storable(list(base.reset_infos), base.num_envs)
    if isinstance(base, DummyVecEnv):
        state["buf_obs"] = [base.buf_obs[key].copy() for key in base.keys]
        state["buf_rews"], state["buf_dones"] = base.buf_rews.copy(), base.buf_dones.copy()
        state["actions"] = np.copy(base.actions) if hasattr(base, "actions") else None
    return state


def _load_base(base: VecEnv, state: StateTree) -> None:
    if not isinstance(base, DummyVecEnv | SubprocVecEnv):
        _load_layers([base], [state])
        return
    base._seeds, base._options = list(state["seeds"]), deepcopy(state["options"])
    base.reset_infos = deepcopy(state["reset_infos"])
    if isinstance(base, DummyVecEnv):
        for key, saved in zip(base.keys, state["buf_obs"], strict=True):
            base.buf_obs[key][...] = saved
        base.buf_rews[...], base.buf_dones[...] = state["buf_rews"], state["buf_dones"]
        if state["actions"] is not None:
            base.actions = state["actions"].copy()


def _if_storable(infos: list[Any], count: int) -> list[Any]:
    """Infos and options come from users' code; they are for reading only, so what cannot be stored is left out."""
    return deepcopy(infos) if storable(infos) else [{} for _ in range(count)]


def _has_physics(layer: Any) -> bool:
    return _name(layer).startswith("gymnasium.envs.mujoco.")


def _physics(env: Any) -> StateTree:
    """The integration state, and every derived quantity: some tasks read positions and forces of the *last* substep
    before they step on (Ant ``xpos``, Humanoid ``xipos``), and recomputing them gives those of the next one."""
    import mujoco

    signature = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(env.model, signature))
    mujoco.mj_getState(env.model, env.data, integration, signature)
    names = [name for name in dir(env.data) if not name.startswith(_ARENA)]
    derived = {name: field.copy() for name in names if _is_field(field := getattr(env.data, name))}
    return {"integration": integration, "derived": derived}


def _set_physics(env: Any, state: StateTree) -> None:
    import mujoco

    mujoco.mj_resetData(env.model, env.data)
    mujoco.mj_setState(env.model, env.data, state["integration"], mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(env.model, env.data)
    for name, saved in state["derived"].items():
        field = getattr(env.data, name)
        field[...] = saved


def _is_field(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float64 and value.size > 0
