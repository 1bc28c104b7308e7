"""The whole state of an SB3 model at a boundary, and back: parameters, optimisers, counters, buffers, environments.

The boundary is ``callback.on_rollout_start``. Restoring takes two steps, because ``learn()`` touches the model between its
start and the first boundary (a new logger, reset action noise, fresh gSDE matrices drawn from the generators):

1. :func:`restore_model` before ``learn(remaining steps, reset_num_timesteps=False)``,
2. :func:`restore_generators` inside the first ``on_rollout_start``.

Nothing is pickled. What cannot continue exactly is said in ``state["notes"]``, a sentence each.
"""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.vec_env import VecEnv

from budwood.api import CheckpointError, StateTree, copied, storable
from budwood_sb3 import env_state
from budwood_sb3.ars import Boundaries
from budwood_sb3.generators import generators, set_generators
from budwood_sb3.together import environments, seed_environments

_COUNTERS = (
    "num_timesteps", "_n_updates", "_n_calls", "_episode_num", "exploration_rate", "_current_progress_remaining", "old_count",
)  # fmt: skip
_SAME = "Resume with the configuration the run was started with."
_LAST = ("_last_obs", "_last_original_obs", "_last_episode_starts")
_BUFFER_CONFIG = {
    "buffer_size", "observation_space", "action_space", "obs_shape", "action_dim", "device", "n_envs",
    "optimize_memory_usage", "handle_timeout_termination", "n_steps", "gamma",
}  # fmt: skip


def model_state(model: BaseAlgorithm, *, replay_buffer: bool = True, rollout_started: bool = True) -> StateTree:
    """Everything ``model`` needs to go on. The replay buffer's arrays are views: store the state before training goes on.

    ``rollout_started``: called inside ``on_rollout_start``; False after ``learn()`` or in ``on_training_end``.
    """
    assert model.env is not None
    notes: list[str] = []
    state: StateTree = {
        "algorithm": type(model).__name__,
        "rollout_started": rollout_started,
        "parameters": copied(model.get_parameters()),
        "variables": {name: copied(getattr(model, name)) for name in model._get_torch_save_params()[1]},
        "counters": {name: getattr(model, name) for name in _COUNTERS if hasattr(model, name)},
        "last": {name: deepcopy(getattr(model, name)) for name in _LAST},
        "lstm": copied(_lstm(model)),
        "episodes": _episodes(model, notes),
        "statistics": _statistics(model),
        "replay": _replay(model, replay_buffer, notes),
        "generators": generators(model),
        "exploration": _exploration(model),
        "noise": _noise(getattr(model, "action_noise", None), notes),
        "log": _log(model, notes),
        "envs": env_state.snapshot_all(model.env),
    }
    if hasattr(model, "weights"):  # ARS
        state["variables"]["weights"] = copied(model.weights)
        if not isinstance(model, Boundaries):
            notes.append(
                "ARS draws its perturbations before the only event it reports: the interrupted update is done anew."
            )
    if state["envs"] is None:
        reasons = "; ".join(env_state.unsavable(model.env))
        notes.append(f"The environments cannot save their state ({reasons}): their episodes restart.")
    if model.device.type != "cpu":
        notes.append(f"On {model.device.type} the sums of an update may round differently: not bit for bit.")
    return {**state, "notes": notes}


def restore_model(model: BaseAlgorithm, state: StateTree) -> list[str]:
    """Step 1, on a model built from the same configuration. -> what cannot continue exactly, one sentence each.

    Environments that could not be saved get seeds derived from the run's seed and step, and are reset by ``learn()``.

    :raises CheckpointError: the state belongs to another algorithm or other networks.
    """
    assert model.env is not None
    if type(model).__name__ != state["algorithm"]:
        raise CheckpointError(
            f"the checkpoint is of {state['algorithm']}, the model is {type(model).__name__}", do=_SAME
        )
    _set_parameters(model, state["parameters"])
    for name, saved in state["variables"].items():
        getattr(model, name).data.copy_(saved)
    for name, saved in state["counters"].items():
        setattr(model, name, saved)
    for name, saved in state["last"].items():
        setattr(model, name, deepcopy(saved))
    if state["lstm"] is not None:
        states = type(model._last_lstm_states)  # type: ignore[attr-defined]  # the recurrent algorithms'
        moved = [tuple(part.to(model.device) for part in pair) for pair in state["lstm"]]
        model._last_lstm_states = states(*moved)  # type: ignore[attr-defined]
    for name, entries in state["episodes"].items():
        window = None if entries is None else deque(deepcopy(entries), maxlen=model._stats_window_size)
        setattr(model, name, window)
    _set_statistics(model, state["statistics"])
    _set_replay(model, state["replay"])
    if state["envs"] is None:
        _restart_episodes(model)
    return list(state["notes"])


def restore_generators(model: BaseAlgorithm, state: StateTree) -> None:
    """Step 2, inside the first ``on_rollout_start``: all that ``learn()`` has disturbed, environments and logger included."""
    assert model.env is not None
    if state["envs"] is not None:
        env_state.restore_all(model.env, state["envs"])
    set_generators(model, state["generators"])
    if state["rollout_started"]:
        _set_exploration(model, state["exploration"])
    elif model.use_sde:
        model.policy.reset_noise(environments(model))  # type: ignore[operator]
    _set_noise(getattr(model, "action_noise", None), state["noise"])
    for name, saved in state["log"].items():
        values = getattr(model.logger, name)
        values.clear()
        values.update(saved)


def policy_state(model: BaseAlgorithm) -> StateTree:
    """What :func:`load_policy` reads, copied."""
    return {
        "parameters": {"policy": copied(model.policy.state_dict())},
        "statistics": _statistics(model),
    }


def load_policy(model: BaseAlgorithm, state: StateTree) -> None:
    """Warm start: the networks and the observation statistics, no optimiser, no counter.

    :raises CheckpointError: the networks have other shapes, or one of the two normalises observations and the other not.
    """
    given, wanted = state["statistics"], _statistics(model)
    normalised = [statistics is not None and statistics["obs_rms"] is not None for statistics in (given, wanted)]
    if normalised[0] != normalised[1]:
        raise CheckpointError(
            f"the policy was trained on {'normalised' if normalised[0] else 'raw'} observations",
            where="init_from",
            do=f"Set `env.normalize.obs` to {str(normalised[0]).lower()}.",
        )
    _load_module(model.policy, state["parameters"]["policy"])
    if given is not None and wanted is not None:
        _set_statistics(model, {**wanted, "obs_rms": given["obs_rms"]})


def _set_parameters(model: BaseAlgorithm, parameters: StateTree) -> None:
    try:
        # Copied, since an optimiser keeps the tensors it is given.
        model.set_parameters(copied(parameters), exact_match=True, device=model.device)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's networks do not fit the model: {_line(error)}", do=_SAME) from error


def _load_module(module: torch.nn.Module, parameters: StateTree) -> None:
    try:
        module.load_state_dict(parameters)
    except RuntimeError as error:
        raise CheckpointError(
            f"the policy does not fit the model: {_line(error)}",
            where="init_from",
            do="Start from a run with the same policy, network sizes and spaces.",
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _lstm(model: BaseAlgorithm) -> list[tuple[torch.Tensor, ...]] | None:
    states = getattr(model, "_last_lstm_states", None)
    return None if states is None else [tuple(pair) for pair in states]


def _episodes(model: BaseAlgorithm, notes: list[str]) -> StateTree:
    windows: StateTree = {}
    for name in ("ep_info_buffer", "ep_success_buffer"):
        window = getattr(model, name)
        windows[name] = None if window is None else [deepcopy(entry) for entry in window if storable(entry)]
        if window is not None and len(windows[name]) < len(window):
            notes.append(f"{name} holds infos that cannot be stored: the mean over recent episodes starts with fewer.")
    return windows


def _statistics(model: BaseAlgorithm) -> StateTree | None:
    """VecNormalize's running statistics; they outlive the episodes, also where environments cannot be saved."""
    normalize = model.get_vec_normalize_env()
    if normalize is None:
        return None
    obs = normalize.obs_rms if normalize.norm_obs else None
    return {"obs_rms": env_state.plain(obs), "ret_rms": env_state.plain(normalize.ret_rms)}


def _set_statistics(model: BaseAlgorithm, state: StateTree | None) -> None:
    normalize = model.get_vec_normalize_env()
    if (normalize is None) != (state is None):
        raise CheckpointError(
            f"the checkpoint was made with{'out' if state is None else ''} normalisation, unlike the model"
        )
    if normalize is not None and state is not None:
        normalize.ret_rms = env_state.live(normalize.ret_rms, state["ret_rms"])
        if normalize.norm_obs:
            normalize.obs_rms = env_state.live(normalize.obs_rms, state["obs_rms"])


def _replay(model: BaseAlgorithm, wanted: bool, notes: list[str]) -> StateTree | None:
    """The filled rows of every array of the buffer whose first axis is the buffer's; one row more while it fills, since
    with ``optimize_memory_usage`` the observation after the last transition stands there."""
    buffer: ReplayBuffer | None = getattr(model, "replay_buffer", None)
    if buffer is None:
        return None
    if isinstance(buffer, HerReplayBuffer):
        notes.append("HerReplayBuffer keeps infos and a reference to its environments: the replay buffer starts empty.")
        return None
    if not wanted:
        notes.append("The checkpoint was made without the replay buffer (checkpoint.replay_buffer): it starts empty.")
        return None
    if hasattr(buffer, "state_dict") and hasattr(buffer, "load_state_dict"):
        return {"own": buffer.state_dict()}
    rows = buffer.buffer_size if buffer.full else buffer.pos + 1
    arrays = _buffer_arrays(buffer)
    filled = {name: _each(array, lambda part: part[:rows]) for name, array in arrays.items()}
    others = {name: value for name, value in vars(buffer).items() if name not in arrays and name not in _BUFFER_CONFIG}
    kept = {name: deepcopy(value) for name, value in others.items() if storable(value)}
    lost = sorted(name for name in set(others) - set(kept) if not isinstance(others[name], VecEnv))
    if lost:
        notes.append(f"{type(buffer).__name__} gives no state_dict: {', '.join(lost)} of the replay buffer start anew.")
    return {"arrays": filled, "others": kept}


def _set_replay(model: BaseAlgorithm, state: StateTree | None) -> None:
    buffer: Any = getattr(model, "replay_buffer", None)
    if state is None:
        return
    if "own" in state:
        buffer.load_state_dict(state["own"])
        return
    for name, saved in state["arrays"].items():
        pairs = [(getattr(buffer, name), saved)]
        if isinstance(saved, dict):
            pairs = [(getattr(buffer, name)[key], part) for key, part in saved.items()]
        for array, part in pairs:
            array[: len(part)] = part
    vars(buffer).update(deepcopy(state["others"]))


def _buffer_arrays(buffer: ReplayBuffer) -> dict[str, Any]:
    """name -> array, or dict of arrays, with one row a step."""

    def is_rows(value: Any) -> bool:
        return isinstance(value, np.ndarray | torch.Tensor) and value.ndim > 0 and len(value) == buffer.buffer_size

    found: dict[str, Any] = {}
    for name, value in vars(buffer).items():
        if is_rows(value) or (isinstance(value, dict) and value and all(map(is_rows, value.values()))):
            found[name] = value
    return found


def _each(value: Any, function: Any) -> Any:
    return {key: function(part) for key, part in value.items()} if isinstance(value, dict) else function(value)


def _restart_episodes(model: BaseAlgorithm) -> None:
    """``learn()`` will reset the environments; the trajectory at the end of the replay buffer must not run on into it."""
    assert model.env is not None
    model._last_obs = None
    entropy = [0 if model.seed is None else model.seed, model.num_timesteps]
    seed_environments(model, int(np.random.SeedSequence(entropy).generate_state(1)[0]))
    buffer = getattr(model, "replay_buffer", None)
    if buffer is None or not (buffer.full or buffer.pos > 0):
        return
    last = (buffer.pos - 1) % buffer.buffer_size
    if buffer.optimize_memory_usage:
        buffer.dones[last] = True
    if isinstance(buffer, NStepReplayBuffer):
        buffer.timeouts[last] = np.logical_or(buffer.timeouts[last], np.logical_not(buffer.dones[last]))


def _exploration(model: BaseAlgorithm) -> StateTree:
    """gSDE's matrices, by module; drawn once a rollout, so that one begun keeps its own."""
    return {
        name: {key: copied(getattr(noise, key)) for key in ("exploration_mat", "exploration_matrices")}
        for name, noise in _gsde(model).items()
        if hasattr(noise, "exploration_mat")
    }


def _set_exploration(model: BaseAlgorithm, state: StateTree) -> None:
    noises = _gsde(model)
    for name, matrices in state.items():
        for key, saved in matrices.items():
            setattr(noises[name], key, saved.to(model.device))


def _gsde(model: BaseAlgorithm) -> dict[str, StateDependentNoiseDistribution]:
    found = ((name, getattr(module, "action_dist", None)) for name, module in model.policy.named_modules())
    return {name: noise for name, noise in found if isinstance(noise, StateDependentNoiseDistribution)}


def _noise(noise: ActionNoise | None, notes: list[str]) -> StateTree | None:
    if isinstance(noise, VectorizedActionNoise):
        return {"noises": [_noise(part, notes) for part in noise.noises]}
    if isinstance(noise, OrnsteinUhlenbeckActionNoise):
        return {"previous": np.copy(noise.noise_prev)}
    if noise is None or isinstance(noise, NormalActionNoise):
        return None
    if hasattr(noise, "state_dict") and hasattr(noise, "load_state_dict"):
        return {"own": noise.state_dict()}
    sentence = f"{type(noise).__name__} gives no state_dict: the action noise starts anew."
    if sentence not in notes:
        notes.append(sentence)
    return None


def _set_noise(noise: Any, state: StateTree | None) -> None:
    if state is None:
        return
    if "noises" in state:
        for part, saved in zip(noise.noises, state["noises"], strict=True):
            _set_noise(part, saved)
    elif "own" in state:
        noise.load_state_dict(state["own"])
    else:
        noise.noise_prev = state["previous"].copy()


def _log(model: BaseAlgorithm, notes: list[str]) -> StateTree:
    """Values recorded since the last dump: ``train()`` records its own after ``dump_logs``."""
    logger = getattr(model, "_logger", None)
    if logger is None:
        return {}
    kept = {name: value for name, value in logger.name_to_value.items() if storable(value)}
    if len(kept) < len(logger.name_to_value):
        lost = sorted(set(logger.name_to_value) - set(kept))
        notes.append(f"Recorded, but not numbers or text, and so missing from one line of the log: {', '.join(lost)}.")
    return {
        "name_to_value": copied(kept),
        "name_to_count": {name: count for name, count in logger.name_to_count.items() if name in kept},
        "name_to_excluded": {name: excluded for name, excluded in logger.name_to_excluded.items() if name in kept},
    }
