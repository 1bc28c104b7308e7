"""A flow policy in a folder: ``flow.safetensors`` holds its weights, ``flow.json`` all else, digests guard both.

Saved weights are those that are to act: after pre-training the moving average, never the raw ones beside it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from budwood.api import CheckpointError
from budwood_flow_rl.families import POLICIES
from budwood_flow_rl.normalisation import Normalisation
from budwood_flow_rl.tensor_file import replace

WEIGHTS, FACTS = "flow.safetensors", "flow.json"
FORMAT = 1


@dataclass(frozen=True)
class Meta:
    """What a saved flow says of itself. ``chunk``: steps executed of each prediction, at most its horizon;
    ``env_id``, ``env_args``: where its demonstrations are from, None where they do not say; ``source``: JSON."""

    chunk: int
    env_id: str | None = None
    env_args: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedFlow:
    """``field`` maps scaled observations to scaled actions; ``normalisation`` scales; ``origin`` is what to call it."""

    field: Any
    normalisation: Normalisation
    meta: Meta
    origin: str = "the saved flow"

    def require(self, where: str, *, do: str = "", **wanted: Any) -> None:
        """Refuse a flow that is not what is ``wanted``: family, horizon, chunk, obs_dim, action_dim, env_id; a wanted
        None is anything. ``where`` names the place that wants it, ``do`` the next step to take.

        :raises CheckpointError: one paragraph that names every difference.
        """
        have = {
            "env_id": self.meta.env_id,
            "obs_dim": len(self.normalisation.observations.low),
            "action_dim": self.field.action_dim,
            "family": self.field.name,
            "horizon": self.field.horizon,
            "chunk": self.meta.chunk,
        }
        different = [name for name in have if wanted.get(name) not in (None, have[name])]
        if different:
            there, here = (", ".join(_said(name, of[name]) for name in different) for of in (have, wanted))
            raise CheckpointError(
                f"{self.origin} was made for {there}, and not for {here}",
                where=where,
                do=do or "Name the folder of a flow that was pre-trained for this, or change the setting",
            )


def _said(name: str, value: Any) -> str:
    match name:
        case "env_id":
            return f"{value}"
        case "obs_dim" | "action_dim":
            return f"{value} {'observation' if name == 'obs_dim' else 'action'}{'' if value == 1 else 's'}"
    return f"{name} {value}"


def save_flow(folder: Path, field: Any, normalisation: Normalisation, meta: Meta) -> None:
    """Write both files, each whole or not at all; the digest in ``flow.json`` tells a pair that is not one."""
    weights = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in field.state_dict().items()})
    facts = {
        "format": FORMAT,
        "family": field.name,
        "arguments": field.arguments(),
        "horizon": field.horizon,
        "chunk": meta.chunk,
        "action_dim": field.action_dim,
        "normalisation": normalisation.as_json(),
        "env_id": meta.env_id,
        "env_args": dict(meta.env_args),
        "source": dict(meta.source),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    replace(folder / WEIGHTS, weights)
    replace(
        folder / FACTS, (json.dumps({**facts, "sha256": _digest(facts)}, indent=1, allow_nan=False) + "\n").encode()
    )


def load_flow(folder: Path) -> SavedFlow:
    """Exactly what :func:`save_flow` was given, on the CPU, in evaluation mode.

    :raises CheckpointError: a file is missing, altered, of another format, or the weights are not the family's.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        weights = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise _refused(folder, f"{error.filename} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise _refused(folder, f"{FACTS} is not JSON ({error})") from error
    if not isinstance(facts, dict) or facts.get("sha256") != _digest({k: v for k, v in facts.items() if k != "sha256"}):
        raise _refused(folder, f"{FACTS} was altered")
    if facts["format"] != FORMAT:
        raise _refused(folder, f"it has format {facts['format']}, and this version reads format {FORMAT}")
    if facts["weights_sha256"] != hashlib.sha256(weights).hexdigest():
        raise _refused(folder, f"{WEIGHTS} was altered, or is not the one that {FACTS} was written with")
    if facts["family"] not in POLICIES:
        raise _refused(folder, f"its family {facts['family']!r} is unknown; known are {', '.join(POLICIES)}")
    try:
        field = POLICIES[facts["family"]](**facts["arguments"])
        field.load_state_dict(load_tensors(weights))
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise _refused(folder, f"its weights do not fit the family {facts['family']}: {reason}") from error
    meta = Meta(facts["chunk"], facts["env_id"], facts["env_args"], facts["source"])
    return SavedFlow(field.eval(), Normalisation.from_json(facts["normalisation"]), meta, str(folder))


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _refused(folder: Path, what: str) -> CheckpointError:
    there = [] if folder.exists() else [path.parent.name for path in folder.parent.glob(f"*/{FACTS}")]
    near = difflib.get_close_matches(folder.name, there, n=1)
    return CheckpointError(
        f"the saved flow cannot be used: {what}",
        where=str(folder),
        do=f"Did you mean {folder.parent / near[0]}?"
        if near
        else "Pre-train it with: budwood flow-rl pretrain; one that was interrupted goes on with --resume",
    )
