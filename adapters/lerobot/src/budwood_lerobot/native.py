"""LeRobot's own configuration objects from plain values under LeRobot's own names, every misfit found before a run.

LeRobot registers policies, environments, optimisers and schedulers by name. Packages named ``lerobot_policy_*`` and
``lerobot_env_*`` register themselves; any other is imported by ``discover_packages_path``, as on LeRobot's command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import draccus
from draccus.utils import DecodingError, ParsingError
from httpx import HTTPError
from huggingface_hub import is_offline_mode
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from budwood_lerobot.versions import check_versions

_HUB = "a run publishes nothing: budwood export writes a folder that you can push"
POLICY_OWNED: Mapping[str, str] = {
    "device": "the run has one device: use the top-level key device",
    "pretrained_path": "write it as trainer.policy.path",
    "use_peft": "adapters of PEFT are not bound yet",
    **dict.fromkeys(("push_to_hub", "repo_id", "private", "tags", "license"), _HUB),
}
"""Fields of a policy's configuration that a run may not set, and why."""

_OURS = "budwood writes checkpoints: use the section checkpoint"
_EVERY = "budwood says when: use the section evaluation"
TRAIN_OWNED: Mapping[str, str] = {
    "dataset": "write it as the section dataset",
    "env": "write it as the section env",
    "policy": "write it beside algo, as trainer.policy",
    "reward_model": "reward models are not trained here",
    "output_dir": "a run has a folder of its own",
    "job_name": "the run has one name: use the top-level key name",
    "job": "a run is on this machine",
    "seed": "the run has one seed: use the top-level key seed",
    "steps": "write it beside algo, as trainer.total_steps",
    "wandb": "metrics go to the journal and to MLflow: use the section tracking",
    "eval": "use the section evaluation, and env.n_envs for how many environments run side by side",
    "peft": "adapters of PEFT are not bound yet",
    "sample_weighting": "its statistics would be lost on a resume",
    "save_checkpoint_to_hub": _HUB,
    "checkpoint_path": _OURS,
    **dict.fromkeys(("resume", "save_checkpoint", "save_freq"), _OURS),
    **dict.fromkeys(("env_eval_freq", "eval_steps"), _EVERY),
}
"""Fields of LeRobot's ``TrainPipelineConfig`` that a run may not set, and why."""

DATASET_OWNED: Mapping[str, str] = {
    "streaming": "rows that stream have no order to resume in",
    "repo_type": "buckets only stream, and rows that stream have no order to resume in",
}


class MisplacedError(ValueError):
    """Keys that do not fit, each with a sentence."""

    def __init__(self, *found: tuple[str, str]) -> None:
        super().__init__("; ".join(sentence for _, sentence in found))
        self.found = found


@contextmanager
def without_arguments() -> Iterator[None]:
    """LeRobot reads ``sys.argv`` also where it is called as a library; meanwhile there is only the program's name."""
    kept = sys.argv
    sys.argv = kept[:1]
    try:
        yield
    finally:
        sys.argv = kept


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """No warnings of the logger ``name``."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@cache
def _registered() -> None:
    check_versions()
    import lerobot.policies  # noqa: F401  registers LeRobot's own
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()


def discover(packages: str | None) -> None:
    """Import a package and its modules, which register policies or environments.

    :raises ValueError: it cannot be imported.
    """
    _registered()
    if packages is None:
        return
    from lerobot.configs.parser import PluginLoadError, load_plugin

    try:
        load_plugin(packages)
    except PluginLoadError as error:
        raise ValueError(f"discover_packages_path: {error}") from error


def policy_config(
    values: Mapping[str, Any], *, kind: str | None, path: str | None, device: str, revision: str | None = None
) -> Any:
    """A ``PreTrainedConfig``: of a registered kind, or as saved in the folder or on the hub at ``path``; ``values`` win.

    :raises ValueError: one sentence for every misfit.
    """
    from lerobot.configs.policies import PreTrainedConfig

    ours = {"device": device, "push_to_hub": False}
    if path is None:
        return decoded(PreTrainedConfig, values, POLICY_OWNED, {"type": kind, **ours})
    try:
        with without_arguments(), _quiet("huggingface_hub"):  # it tells of every try; the error tells what came of them
            saved = draccus.encode(PreTrainedConfig.from_pretrained(path, revision=revision), PreTrainedConfig)
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise MisplacedError(("path", _nowhere(path, error))) from error
    except (OSError, ValueError, DecodingError, HTTPError) as error:
        raise MisplacedError(("path", f"{path} holds no policy of LeRobot: {flat(error)}")) from error
    config = decoded(PreTrainedConfig, values, POLICY_OWNED, {**saved, **ours})
    config.pretrained_path, config.pretrained_revision = Path(path), revision
    return config


def _nowhere(path: str, error: Exception) -> str:
    """Of what is neither a folder nor, as far as can be told from here, an id on the hub."""
    missing = f"there is no folder {path}"
    if isinstance(error, HFValidationError):
        return missing
    away = "" if is_offline_mode() else ", and the hub cannot be reached"
    return f"{missing}; as an id on the hub it is not in the cache either{away}"


def env_config(kind: str, values: Mapping[str, Any]) -> Any:
    """An ``EnvConfig`` of a registered kind.

    :raises ValueError: one sentence for every misfit.
    """
    from lerobot.envs.configs import EnvConfig

    return decoded(EnvConfig, values, {}, {"type": kind})


@cache
def video_backend() -> str:
    """LeRobot's choice of a video decoder, without the page it logs each time where torchcodec is missing or broken."""
    from lerobot.utils import import_utils

    with _quiet(import_utils.__name__):
        chosen: str = import_utils.get_safe_default_video_backend()
    return chosen


def dataset_config(values: Mapping[str, Any]) -> Any:
    """LeRobot's ``DatasetConfig``.

    :raises ValueError: one sentence for every misfit.
    """
    discover(None)
    from lerobot.configs.default import DatasetConfig

    return decoded(DatasetConfig, values, DATASET_OWNED, {"video_backend": video_backend()})


def train_config(args: Mapping[str, Any]) -> Any:
    """A ``TrainPipelineConfig`` with ``args``; dataset, policy and environment are to be put in.

    :raises ValueError: one sentence for every misfit.
    """
    discover(None)
    from lerobot.configs.train import TrainPipelineConfig

    preset = args.get("use_policy_training_preset", True)
    if preset and ("optimizer" in args or "scheduler" in args):
        raise ValueError(
            "LeRobot replaces optimizer and scheduler by the policy's own presets: set use_policy_training_preset: false "
            "and give both, or set the policy's fields optimizer_* and scheduler_*"
        )
    if not preset and ("optimizer" not in args or "scheduler" not in args):
        raise ValueError("use_policy_training_preset: false needs optimizer and scheduler")
    found = problems(TrainPipelineConfig, args, TRAIN_OWNED)
    if found:
        raise MisplacedError(*found)
    rows = {"repo_id": "unnamed", "video_backend": video_backend()}
    return _decode(TrainPipelineConfig, {"dataset": rows, **args})


def decoded(base: Any, values: Mapping[str, Any], owned: Mapping[str, str], given: Mapping[str, Any]) -> Any:
    """An object of the dataclass ``base``, or of the class that the given ``type`` is registered for.

    ``values`` are a person's and are checked; ``given`` is what holds without them.
    """
    cls = base
    if hasattr(base, "get_known_choices"):
        choices = base.get_known_choices()
        if given["type"] not in choices:
            raise MisplacedError(("type", f"LeRobot has no {_noun(base)} {unknown(given['type'], sorted(choices))}"))
        cls = choices[given["type"]]
    found = problems(cls, values, owned)
    if found:
        raise MisplacedError(*found)
    return _decode(base, {**given, **values})


def _decode(cls: Any, values: dict[str, Any]) -> Any:
    try:
        return draccus.decode(cls, values)
    except DecodingError as error:  # a value that does not fit its field
        raise ValueError(flat(error)) from error
    except ParsingError as error:  # the class itself refuses them
        raise ValueError(flat(error.__cause__ or error)) from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(flat(error)) from error


def problems(cls: Any, values: Mapping[str, Any], owned: Mapping[str, str]) -> list[tuple[str, str]]:
    """Every key of ``values`` that ``cls`` has no field for, or that a run owns, and a sentence why."""
    allowed = [item.name for item in dataclasses.fields(cls) if item.init and item.name not in owned]
    found = []
    for key in values:
        if key in owned:
            found.append((key, f"{key!r} cannot be set here: {owned[key]}"))
        elif key not in allowed:
            found.append((key, f"{cls.__name__} has no field {unknown(key, allowed)}"))
    return found


def unknown(name: str, known: Sequence[str]) -> str:
    """The name, and the one that may have been meant, or all if none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"{name!r} (did you mean {near[0]!r}?)"
    return f"{name!r}; it has {', '.join(known)}"


def flat(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())


def _noun(base: Any) -> str:
    return {"PreTrainedConfig": "policy", "EnvConfig": "environment"}[base.__name__]
