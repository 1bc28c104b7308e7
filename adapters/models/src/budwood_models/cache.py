"""Where converted models are kept, and how one is made exactly once.

A folder is written under another name and then renamed, under a lock: whoever sees it sees it whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from budwood.api import DiskFullError

MANIFEST = "budwood.json"
log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """``$BUDWOOD_CACHE``, else ``budwood`` in the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    if own := os.environ.get("BUDWOOD_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "budwood"


def digest_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def made_once(folder: Path, make: Callable[[Path], Mapping[str, Any]]) -> Path:
    """``folder``, made by ``make(empty folder) -> facts for its manifest`` unless it is there already, and whole.

    Of several processes that want it at once, one makes it and the others wait.
    """
    from filelock import FileLock

    if is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if is_whole(folder):
            return folder
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        for leftover in (unfinished, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished.mkdir()
        try:
            facts = make(unfinished)
            sizes = {path.name: path.stat().st_size for path in sorted(unfinished.iterdir())}
            (unfinished / MANIFEST).write_text(json.dumps({**facts, "files": sizes}, indent=2))
            unfinished.rename(folder)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            do = "Free some space, or set BUDWOOD_CACHE to a folder on another disk"
            raise DiskFullError("no space left for a converted model", where=str(folder), do=do) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def manifest(folder: Path) -> dict[str, Any] | None:
    """What was noted when ``folder`` was made; None if it was not, or not to the end."""
    try:
        return dict(json.loads((folder / MANIFEST).read_text()))
    except (OSError, ValueError):
        return None


def is_whole(folder: Path) -> bool:
    """Whether every file of the manifest is there with its size."""
    facts = manifest(folder)
    if facts is None:
        return False
    files = [(folder / name, size) for name, size in facts["files"].items()]
    return all(path.is_file() and path.stat().st_size == size for path, size in files)
