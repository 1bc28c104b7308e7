"""One safetensors file with a JSON header of ours and a digest: written whole or not at all, read without unpickling.

The header is the string ``budwood`` of the file's metadata, so any reader of safetensors can show it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from budwood.api import Array, BudwoodError, CheckpointError

KEY = "budwood"
FORMAT = 2
"""2: the digest covers the header too."""


def write(path: Path, kind: str, tensors: Mapping[str, Array], header: Mapping[str, Any]) -> str:
    """Put ``tensors`` and ``header`` under ``path``, replacing what was there in one step; -> the digest of both.

    ``kind`` names what the file is, for :func:`read` to check. :raises BudwoodError: the file cannot be written.
    """
    arrays = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    head = {"kind": kind, "format": FORMAT, **header}
    sha256 = _whole(arrays, head)
    replace(path, save(arrays, {KEY: json.dumps({**head, "sha256": sha256}, allow_nan=False)}))
    return sha256


def read(
    path: Path, kind: str, needs: Collection[str], error: type[BudwoodError] = CheckpointError
) -> tuple[dict[str, Array], dict[str, Any]]:
    """-> (tensors, header), after checking the digest; ``needs`` are keys of the header.

    :raises error: the file is missing, is no such file, is of another kind or format, was altered, or its header lacks
        a key.
    """

    def refuse(what: str, do: str) -> BudwoodError:
        return error(what, where=str(path), do=do)

    again = f"Make the {kind} again, or restore the file from a backup"
    try:
        with safe_open(path, "np") as file:
            head = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except FileNotFoundError:
        raise refuse("there is no such file", f"Name a file of {kind}") from None
    except (OSError, SafetensorError, ValueError) as problem:
        raise refuse(f"the file cannot be read as {kind}: {problem}", again) from problem
    if not isinstance(head, dict) or head.get("kind") != kind:
        found = head.get("kind") if isinstance(head, dict) else "a safetensors file of something else"
        raise refuse(f"this is no file of {kind}: it holds {found}", f"Name a file of {kind}")
    if head.get("format") != FORMAT:
        raise refuse(f"it has format {head.get('format')}, and this version reads format {FORMAT}", again)
    if head.pop("sha256", None) != _whole(tensors, head):
        raise refuse("the file was altered: it does not have the digest that its header tells", again)
    missing = [name for name in needs if name not in head]
    if missing:
        raise refuse(f"its header lacks {', '.join(missing)}", again)
    return tensors, head


def digest(arrays: Mapping[str, Array]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _whole(arrays: Mapping[str, Array], head: Mapping[str, Any]) -> str:
    """The digest of a file: of its arrays, and of its header as JSON with sorted keys."""
    told = json.dumps(head, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(f"{digest(arrays)}\n{told}".encode()).hexdigest()


def replace(path: Path, content: bytes) -> None:
    """``content`` under ``path``, or what was there before, also after a power cut."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> BudwoodError:
    """An operating-system error while writing ``path``, as one clear paragraph."""
    return BudwoodError(
        f"writing failed: {error.strerror or error}", where=str(path), do="Free some space, or choose another place"
    )
