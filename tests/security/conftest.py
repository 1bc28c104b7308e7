"""Small runs of every adapter, and what Python itself says of a run: which classes a pickle named, which files were opened.

These are audit events of the interpreter (PEP 578), so no library can go round them. An audit hook cannot be removed; ours
listens only while a test asks it to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "adapters" / "lerobot" / "tests"))
sys.path.insert(0, str(Path(__file__).parents[2] / "adapters" / "trl" / "tests"))

from robots import dataset
from tiny import model_folder, rows_file

__all__ = ["dataset", "model_folder", "rows_file"]


@dataclass
class Heard:
    """``classes`` that an unpickler looked up, as ``module.name``; ``files`` opened for reading; ``writes`` for writing."""

    classes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    writes: list[Path] = field(default_factory=list)


_listening: list[Heard] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _listening:
        return
    if event == "pickle.find_class":
        _listening[-1].classes.append(f"{arguments[0]}.{arguments[1]}")
    elif event == "open" and isinstance(arguments[0], (str, bytes)):
        path, mode, flags = arguments
        name = path if isinstance(path, str) else path.decode(errors="surrogateescape")
        writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool((flags or 0) & 3)
        (_listening[-1].writes if writes else _listening[-1].files).append(Path(name))


sys.addaudithook(_hear)


@pytest.fixture
def listening() -> Iterator[Callable[[], AbstractContextManager[Heard]]]:
    """``with listening() as heard``: what happens inside is in ``heard``."""

    @contextmanager
    def listen() -> Iterator[Heard]:
        _listening.append(Heard())
        try:
            yield _listening[-1]
        finally:
            _listening.pop()

    yield listen
    _listening.clear()
