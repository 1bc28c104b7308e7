"""A policy's pre- and post-processors, made anew or as saved beside it; what is saved may name steps, and run nothing else.

LeRobot imports and calls whatever a saved step names as its ``class``, so the files are looked through before it reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetGenerationError
from httpx import HTTPError
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from lerobot.datasets.utils import CompatibilityError
from lerobot.policies import make_pre_post_processors
from lerobot.processor import ProcessorStep, ProcessorStepRegistry
from lerobot.processor.pipeline import ProcessorMigrationError
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME

from budwood.api import ConfigError
from budwood_lerobot.native import flat

UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    CompatibilityError,
    DatasetGenerationError,
    HTTPError,
    ProcessorMigrationError,
)
"""What LeRobot raises over files that are missing or are something else."""


def processors_of(config: Any, **given: Any) -> tuple[Any, Any]:
    """(before, after) the policy of ``config``, a ``PreTrainedConfig``; ``given`` is for LeRobot's function.

    :raises ConfigError: they cannot be made, or a saved one names what is no step of a policy.
    """
    path, revision = config.pretrained_path, config.pretrained_revision
    try:
        if path is not None:
            for name in (POLICY_PREPROCESSOR_DEFAULT_NAME, POLICY_POSTPROCESSOR_DEFAULT_NAME):
                check_saved(path, f"{name}.json", revision)
        made: tuple[Any, Any] = make_pre_post_processors(
            policy_cfg=config, pretrained_path=path, pretrained_revision=revision, **given
        )
    except (ImportError, *UNREADABLE) as error:
        raise ConfigError(
            f"LeRobot cannot make the processors of {config.type}: {flat(error)}", where="trainer.policy"
        ) from error
    return made


def check_saved(path: Any, name: str, revision: str | None) -> None:
    """Nothing where there is no such file: LeRobot says so, or does without.

    :raises ConfigError: a step would run what is no step of a policy, or code from the hub.
    """
    if Path(path).is_dir():
        file = Path(path) / name
        if not file.exists():
            return
    else:
        try:
            file = Path(hf_hub_download(str(path), name, revision=revision))
        except RemoteEntryNotFoundError:
            return
    found = list(_problems(json.loads(file.read_text(encoding="utf-8"))))
    if found:
        raise ConfigError(
            f"{name} of {path} would run code that no policy of LeRobot needs: {'; '.join(found)}",
            where="trainer.policy.path",
            do="Use a folder whose origin you know; a step of a package of yours is registered with ProcessorStepRegistry",
        )


def _problems(saved: Any) -> Iterator[str]:
    steps = saved.get("steps") if isinstance(saved, Mapping) else None
    for step in steps if isinstance(steps, list) else ():
        if not isinstance(step, Mapping) or not isinstance(step.get("config", {}), Mapping):
            yield f"{step!r} is no step"
            continue
        if "registry_name" in step:
            named = step["registry_name"]
            cls = ProcessorStepRegistry.get(named) if named in ProcessorStepRegistry.list() else None
        else:
            named = step.get("class")
            cls = _step(named)
            if cls is None:
                yield f"{named!r} is no step of LeRobot's own"
        if step.get("config", {}).get("trust_remote_code", getattr(cls, "trust_remote_code", False)):
            yield f"{named!r} trusts remote code"


def _step(name: Any) -> type[ProcessorStep] | None:
    """A class of steps inside LeRobot; its functions, some of which run files, are none."""
    if not isinstance(name, str) or not name.startswith("lerobot."):
        return None
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(module), attribute, None)
    return found if isinstance(found, type) and issubclass(found, ProcessorStep) else None
