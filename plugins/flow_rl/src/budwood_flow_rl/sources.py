"""Datasets that others recorded, as demonstrations: Minari and LeRobot. Local ones only; nothing is downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from budwood.api import Array, ConfigError
from budwood_flow_rl.demonstrations import DemonstrationError, Demonstrations, concatenated


def of_minari(dataset_id: str, keys: Sequence[str] = (), env_id: str | None = None) -> Demonstrations:
    """A Minari dataset below ``MINARI_DATASETS_PATH``. ``keys``: entries of dict observations, put end to end in this
    order (``a.b`` is entry b of entry a). ``env_id`` replaces the environment that the dataset names.

    :raises ConfigError: Minari is missing, or the dataset is not there.
    :raises DemonstrationError: its observations or actions are no vectors.
    """
    minari = _imported("minari", "minari")
    try:
        dataset = minari.load_dataset(dataset_id, download=False)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(
            f"there is no local Minari dataset {dataset_id!r}: {error}",
            where="--from",
            do="Fetch it with Minari first, or set MINARI_DATASETS_PATH to the folder that holds it",
        ) from error
    except ImportError as error:
        raise ConfigError(
            f"its files need a library that is not installed: {error}", where="--from", do="Install it"
        ) from error
    source = f"Minari dataset {dataset_id}"
    episodes, terminated, truncated = [], [], []
    for episode in dataset.iterate_episodes():
        steps = len(episode.rewards)
        seen = _vectors(_chosen(episode.observations, keys, source), "observations", source)
        actions = _vectors(episode.actions, "actions", source)
        episodes.append((seen[:steps], actions, np.asarray(episode.rewards)))  # the last observation has no action
        terminated.append(bool(episode.terminations[-1]))
        truncated.append(bool(episode.truncations[-1]) and not terminated[-1])
    spec = dataset.spec.env_spec
    same = spec is not None and env_id in (None, spec.id)
    return concatenated(
        episodes,
        terminated,
        truncated,
        env_id=spec.id if same else env_id,
        env_args=dict(spec.kwargs) if same else {},
        about={"source": source, "versions": {"minari": minari.__version__}},
    )


def of_lerobot(
    repo_id: str, root: Path | None, keys: Sequence[str] = ("observation.state",), env_id: str | None = None
) -> Demonstrations:
    """A LeRobotDataset in the folder ``root``. ``keys``: columns of vectors, put end to end in this order. Rewards are its
    column ``next.reward``, if it has one. LeRobot does not tell failure from time limit: every episode counts as truncated.

    :raises ConfigError: LeRobot is missing, or no dataset is in ``root``.
    :raises DemonstrationError: a column is missing or is no vector.
    """
    if root is None or not (Path(root) / "meta" / "info.json").is_file():
        raise ConfigError(
            f"no LeRobotDataset is in {root or 'a folder that is not named'}: its meta/info.json is missing",
            where="--root",
            do="Name the folder that holds meta/ and data/; datasets of the hub are fetched with LeRobot first",
        )
    module = _imported("lerobot.datasets", "lerobot")
    rows = module.LeRobotDataset(repo_id, root=root).hf_dataset.with_format("numpy")
    source = f"LeRobotDataset {repo_id}"
    missing = [key for key in (*keys, "action") if key not in rows.column_names]
    if missing:
        raise DemonstrationError(
            f"the dataset has no column {', '.join(missing)}",
            where=source,
            do=f"Name columns with --observation; it has {', '.join(rows.column_names)}",
        )
    observations = np.concatenate([_vectors(rows[key], key, source) for key in keys], axis=1)
    actions = _vectors(rows["action"], "action", source)
    rewards = np.asarray(rows["next.reward"]).reshape(-1) if "next.reward" in rows.column_names else None
    changes = np.flatnonzero(np.diff(np.asarray(rows["episode_index"]))) + 1
    cuts = [0, *changes.tolist(), len(actions)]
    episodes = [
        (observations[begin:end], actions[begin:end], None if rewards is None else rewards[begin:end])
        for begin, end in pairwise(cuts)
    ]
    count = len(episodes)
    about = {"source": source, "versions": {"lerobot": _imported("lerobot", "lerobot").__version__}}
    return concatenated(episodes, [False] * count, [True] * count, env_id=env_id, about=about)


def _imported(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"reading it needs {module}: {error}", where="--from", do=f'pip install "budwood-flow-rl[{extra}]"'
        ) from error


def _chosen(observations: Any, keys: Sequence[str], source: str) -> Any:
    """The array of plain observations; for dicts, the entries that ``keys`` name, end to end."""
    if not isinstance(observations, dict):
        if keys:
            raise DemonstrationError(
                "its observations are plain arrays without names", where=source, do="Leave --observation out"
            )
        return observations
    if not keys:
        raise DemonstrationError(
            f"its observations are dicts with {', '.join(observations)}",
            where=source,
            do="Say which entries to use: --observation NAME, once for each",
        )
    return np.concatenate([_entry(observations, key, source) for key in keys], axis=1)


def _entry(observations: Any, key: str, source: str) -> Array:
    found = observations
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            raise DemonstrationError(
                f"its observations have no entry {key!r}", where=source, do="Correct --observation"
            )
        found = found[part]
    return _vectors(found, key, source)


def _vectors(values: Any, name: str, source: str) -> Array:
    """(T, n) numbers; (T,) becomes (T, 1). :raises DemonstrationError: for anything else."""
    array = np.asarray(values)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.dtype.kind not in "fiub" or not array.shape[1]:
        raise DemonstrationError(
            f"{name} are no vectors of numbers: {array.dtype}, {array.shape[1:]} a step",
            where=source,
            do="Flow policies on states learn from vectors; images are for LeRobot's own policies",
        )
    return array
