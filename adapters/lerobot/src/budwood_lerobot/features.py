"""Whether a policy and the environment that it plays in speak of the same numbers and pictures.

LeRobot compares the names of cameras in dataset and policy alone: another robot's state or action is met amid the first
episode, or never.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gymnasium import spaces
from lerobot.configs import FeatureType
from lerobot.datasets.utils import INFO_PATH
from lerobot.envs import EnvConfig as NativeEnvConfig
from lerobot.envs import HubEnvConfig, make_env_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_IMAGE, OBS_IMAGES, OBS_STATE
from lerobot.utils.feature_utils import dataset_to_policy_features

from budwood.api.generators import set_aside
from budwood_lerobot.config import EnvConfig
from budwood_lerobot.environments import vectors_of

Features = Mapping[str, Any]
"""Name -> LeRobot's ``PolicyFeature``; pictures are (channels, height, width)."""

REMEDY = (
    "Name under env the environment that the dataset and the policy are of, or a dataset and a policy of this one; where names "
    "of cameras alone differ, trainer.args.rename_map maps them for a policy of trainer.policy.path"
)


NUMBERS = {"agent_pos": OBS_STATE, "environment_state": OBS_ENV_STATE}
"""What LeRobot calls the parts of an observation, as in its ``preprocess_observation``; pictures are ``pixels``."""


def of_folder(root: str | None) -> Features:
    """Those of the LeRobotDataset in a folder; empty where there is none, or a broken one, of which the run will tell."""
    file = None if root is None else Path(root) / INFO_PATH
    if file is None or not file.is_file():
        return {}
    try:
        found: Features = dataset_to_policy_features(json.loads(file.read_text(encoding="utf-8"))["features"])
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return {}
    return found


def misfit(policy: Any, inputs: Features | None, outputs: Features | None, env: Any) -> str:
    """Which states and actions of a policy are of another shape in an ``EnvConfig``, as a sentence; '' if none is.

    What processors of the environment compose is not looked at, nor is an environment that declares nothing, nor the state of
    a policy that pads it, as pi0 and smolvla do whatever width they were saved with. ``policy`` is a ``PreTrainedConfig``.
    """
    before, after = make_env_pre_post_processors(env_cfg=env, policy_cfg=policy)
    given = {env.features_map.get(name, name): feature for name, feature in env.features.items()}
    own = {
        **({} if before.steps or hasattr(policy, "max_state_dim") else _chosen(inputs, OBS_STATE, OBS_ENV_STATE)),
        **({} if after.steps else _chosen(outputs, ACTION)),
    }
    found = [
        f"{name} is {tuple(feature.shape)} for the policy and {tuple(given[name].shape)} in the environment"
        for name, feature in own.items()
        if name in given and tuple(feature.shape) != tuple(given[name].shape)
    ]
    return _sentence(policy, env, found)


def seen_in(section: EnvConfig, rename: Mapping[str, str]) -> dict[str, tuple[int, ...]] | None:
    """Name -> shape of what a policy is shown, told by an environment that is made and never played.

    None where it is not Gymnasium's to make, has processors of its own, or draws no pictures of three sides.
    """
    config = section.native()
    own = type(config).create_envs is not NativeEnvConfig.create_envs or isinstance(config, HubEnvConfig)
    if own or config.get_env_processors()[0].steps:
        return None
    with set_aside(0):
        ((vector,),) = (tasks.values() for tasks in vectors_of(section, 1).values())
        space = vector.single_observation_space
        vector.close()
    if not isinstance(space, spaces.Dict):
        return {}
    pixels = space.spaces.get("pixels")
    pictures = pixels.spaces.values() if isinstance(pixels, spaces.Dict) else [pixels] if pixels is not None else []
    if any(len(picture.shape or ()) != 3 for picture in pictures):
        return None
    shown = {name: tuple(space[key].shape or ()) for key, name in NUMBERS.items() if key in space.spaces}
    if isinstance(pixels, spaces.Dict):
        shown |= {f"{OBS_IMAGES}.{camera}": _channels_first(it) for camera, it in pixels.items()}
    elif pixels is not None:
        shown[OBS_IMAGE] = _channels_first(pixels)
    return {rename.get(name, name): shape for name, shape in shown.items()}


def _channels_first(space: Any) -> tuple[int, ...]:
    height, width, channels = space.shape
    return channels, height, width


def unseen(policy: Any, env: Any, seen: Mapping[str, Any]) -> str:
    """Which cameras, and whether the state, a policy reads and an environment does not show, as a sentence; '' if none.

    ``seen`` as of :func:`seen_in`. Cameras are not compared by their sizes: a policy may change them.
    """
    read = {
        name: feature
        for name, feature in policy.input_features.items()
        if name == OBS_STATE or feature.type is FeatureType.VISUAL
    }
    missing = unread(read, seen, fills=hasattr(policy, "empty_cameras"))
    shown = ", ".join(sorted(seen)) or "nothing"
    return _sentence(
        policy, env, [f"the policy reads {', '.join(missing)}, and the environment gives {shown}"] if missing else []
    )


def other_sizes(rows: Features, seen: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Which pictures of a dataset are of another size in the environment."""
    return [
        f"{name} is {_size(feature.shape)} in the dataset and {_size(seen[name])} in the environment"
        for name, feature in rows.items()
        if feature.type is FeatureType.VISUAL and name in seen and tuple(feature.shape) != tuple(seen[name])
    ]


def _chosen(features: Features | None, *names: str) -> Features:
    return {name: feature for name, feature in (features or {}).items() if name in names}


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape[1:])


def _sentence(policy: Any, env: Any, found: list[str]) -> str:
    return f"the policy {policy.type} does not fit the environment {env.type}: {'; '.join(found)}" if found else ""


def unread(features: Mapping[str, Any], seen: Mapping[str, Any], fills: bool) -> list[str]:
    """What a policy reads by its ``input_features`` and an observation lacks.

    Cameras may be more than the policy declares, as LeRobot has it, and fewer if it ``fills`` in those that are missing, as
    pi0 and smolvla do and act does not. One at least is there, and neither side has cameras that the other lacks while the
    other does too.
    """
    images = {key for key, feature in features.items() if feature.type is FeatureType.VISUAL}
    given = {key for key in seen if key.startswith(OBS_IMAGE)}
    missing = set(features) - images - set(seen)
    fits = images <= given or (fills and bool(given) and given <= images)
    if images and not fits:
        missing |= images - given
    return sorted(missing)
