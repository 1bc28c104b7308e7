"""Checkpoints: one folder an instant, complete or not there at all, and proof that nobody touched it since.

A checkpoint is written beside its place, every file and folder synced, then renamed: a power cut leaves the old ones or
the old ones and the new one. ``manifest.json`` holds the size and SHA-256 of each file, and its own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from budwood import tree
from budwood.api import CheckpointError, DiskFullError, StateTree
from budwood.redact import holds_secret

FORMAT = 1
STATE, TENSORS, MANIFEST = "state.json", "tensors.safetensors", "manifest.json"

_FOLDER = re.compile(r"step_(\d{12,})(?:\.(\d+))?")
_UNFINISHED = ".tmp-"
EARLIER = "Use an earlier checkpoint of the run."


class Checkpoints:
    """The checkpoints of one run: ``folder/step_000000020480/{state.json,tensors.safetensors,manifest.json}``.

    ``keep`` newest ones stay. One process writes; any number may read at the same time.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"at least one checkpoint must be kept, not {keep}")
        self.folder, self.keep = folder, keep

    def save(self, steps: int, state: StateTree, meta: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove the ones it makes superfluous. ``meta`` is plain JSON.

        :raises DiskFullError: no space left; the unfinished folder is gone, the older checkpoints are as they were.
        :raises CheckpointError: the folder cannot be written, or ``state`` holds a value that cannot be stored.
        """
        structure, tensors = tree.encode(state)
        if holds_secret(json.dumps(structure)):
            raise CheckpointError(
                "the state of the run holds the value of a secret, which no checkpoint keeps",
                where=str(self.folder),
                do="Have the plugin that keeps it in its state_dict read it from the environment when it is needed",
            )
        head = {"format": FORMAT, "steps": steps, "meta": dict(meta)}
        try:
            _json(head)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the meta data of a checkpoint must be plain JSON: {error}") from error
        try:
            path = self._write(steps, structure, tensors, head)
            self._prune(path)
        except OSError as error:
            raise self._failure(error, steps, tensors) from error
        return path

    def latest(self) -> tuple[Path, list[str]] | None:
        """The newest checkpoint whose digests hold, and what is wrong with each newer one; None if there is none at all.

        :raises CheckpointError: there are checkpoints, but every one is damaged.
        """
        damaged: list[str] = []
        for path in reversed(self._all()):
            problem = _damage(path)
            if problem is None:
                return path, damaged
            damaged.append(f"{path.name}: {problem}")
        if damaged:
            raise CheckpointError(
                f"every checkpoint is damaged ({'; '.join(damaged)})",
                where=str(self.folder),
                do="Restore the folder from a backup, or start the run again.",
            )
        return None

    def at(self, steps: int) -> Path:
        """The checkpoint of that step. :raises CheckpointError: there is none; those there are stand in the message."""
        paths = {_order(path)[0]: path for path in self._all()}
        if steps not in paths:
            kept = ", ".join(map(str, paths)) or "none"
            raise CheckpointError(
                f"there is no checkpoint of step {steps}", where=str(self.folder), do=f"Kept are those of: {kept}."
            )
        return paths[steps]

    def load(self, path: Path) -> tuple[StateTree, dict[str, Any]]:
        """-> (state, meta), after checking every digest.

        :raises CheckpointError: a file is missing, truncated or altered.
        """
        problem = _damage(path)
        if problem is not None:
            raise CheckpointError(f"the checkpoint is damaged: {problem}", where=str(path), do=EARLIER)
        try:
            with tree.open_tensors(path / TENSORS) as fetch:
                state = tree.decode(json.loads((path / STATE).read_bytes()), fetch)
            if not isinstance(state, dict):
                raise CheckpointError(f"the state is a {type(state).__name__} instead of names with values")
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{STATE} cannot be read: {error}", where=str(path), do=EARLIER) from error
        except CheckpointError as error:
            error.where, error.do = error.where or str(path), error.do or EARLIER
            raise
        return state, self.meta(path)

    def meta(self, path: Path) -> dict[str, Any]:
        """What was written beside the state of a checkpoint that :meth:`latest` or :meth:`at` gave."""
        meta: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())["meta"]
        return meta

    def _write(self, steps: int, structure: Any, tensors: Mapping[str, Any], head: dict[str, Any]) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"{_UNFINISHED}*"):  # of a process that was killed
            shutil.rmtree(leftover)
        target = self._free_name(steps)
        work = self.folder / f"{_UNFINISHED}{target.name}"
        work.mkdir()
        try:
            files = {
                STATE: _write_file(work / STATE, [_json(structure)]),
                TENSORS: _write_file(work / TENSORS, tree.tensor_file(tensors)),
            }
            manifest = {**head, "files": files}
            _write_file(work / MANIFEST, [_json({**manifest, "sha256": _digest(manifest)})])
            _sync_folder(work)
            work.rename(target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        _sync_folder(self.folder)
        return target

    def _free_name(self, steps: int) -> Path:
        """A step that is saved again gets a suffix: a finished checkpoint is never overwritten."""
        name = f"step_{steps:012d}"
        taken = [path for path in self._all() if path.name.split(".")[0] == name]
        return self.folder / (f"{name}.{_order(taken[-1])[1] + 1}" if taken else name)

    def _prune(self, newest: Path) -> None:
        """Keep ``newest``, complete since just written, and the ``keep - 1`` before it.

        Those after it are damaged or from a continuation that was given up when the run resumed further back.
        """
        paths = self._all()
        position = paths.index(newest)
        same_step = [path for path in paths[:position] if _order(path)[0] == _order(newest)[0]]
        older = [path for path in paths[:position] if path not in same_step]
        for path in [*older[: max(0, len(older) - self.keep + 1)], *same_step, *paths[position + 1 :]]:
            grave = path.with_name(f"{_UNFINISHED}{path.name}")
            path.rename(grave)
            shutil.rmtree(grave)

    def _all(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if _FOLDER.fullmatch(path.name)), key=_order)

    def _failure(self, error: OSError, steps: int, tensors: Mapping[str, Any]) -> CheckpointError | DiskFullError:
        last = self._all()[-1:]
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            size = sum(tensor.nbytes for tensor in tensors.values())
            return DiskFullError(
                f"no space left for the checkpoint of step {steps} ({size / 1e6:.1f} MB)",
                where=str(self.folder),
                do=f"Free some space, then resume the run: {last[0].name} is complete."
                if last
                else "Free some space, then start the run again: there is no earlier checkpoint.",
            )
        return CheckpointError(
            f"cannot write the checkpoint of step {steps}: {error.strerror or error}",
            where=str(error.filename or self.folder),
            do="Make the folder writable, or choose another with `output=FOLDER`.",
        )


@contextmanager
def taking_up(where: str) -> Iterator[None]:
    """A state that is read here came from the checkpoint ``where``: what does not fit names it.

    :raises CheckpointError: also for a key that is read and was never written.
    """
    try:
        yield
    except CheckpointError as error:
        error.where = error.where or where
        raise
    except KeyError as error:
        raise CheckpointError(
            f"the checkpoint has no {error}: another version wrote it, or another trainer",
            where=where,
            do="Install what the run was trained with, which its versions.json names, or start a new run with init_from=RUN",
        ) from error


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        claimed = manifest.pop("sha256")
        files = {name: (said["size"], said["sha256"]) for name, said in manifest["files"].items()}
        format_, _ = manifest["format"], dict(manifest["meta"])
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return f"{MANIFEST} cannot be read"
    if claimed != _digest(manifest):
        return f"{MANIFEST} was altered"
    if format_ != FORMAT:
        return f"it has format {format_}, and this version of budwood reads format {FORMAT}"
    if files.keys() != {STATE, TENSORS}:
        return f"{MANIFEST} names {', '.join(map(repr, sorted(files))) or 'no file'} instead of {STATE} and {TENSORS}"
    for name, (expected, digest_expected) in files.items():
        try:
            size = (path / name).stat().st_size
            if size != expected:
                return f"{name} has {size} bytes instead of {expected}"
            with (path / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if digest != digest_expected:
            return f"{name} was altered"
    return None


def _order(path: Path) -> tuple[int, int]:
    found = _FOLDER.fullmatch(path.name)
    assert found is not None
    return int(found[1]), int(found[2] or 0)


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write, sync, and return what the manifest says about the file."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"size": size, "sha256": digest.hexdigest()}


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
