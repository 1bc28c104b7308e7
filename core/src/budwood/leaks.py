"""Open files and threads of this process, before a run and after it: what something took and did not give back."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

DESCRIPTORS = "/proc/self/fd"
ALLOWED_FILES, ALLOWED_THREADS = 32, 8
"""What trainers, trackers and libraries keep for themselves once they have begun."""
FILES_AN_ENVIRONMENT = 8
"""Environments to evaluate in are made during training, some in processes with pipes, and live until its end."""


class Held(NamedTuple):
    files: int
    threads: int


def held() -> Held:
    """0 files where the system does not list them."""
    files = len(os.listdir(DESCRIPTORS)) if os.path.isdir(DESCRIPTORS) else 0
    return Held(files, threading.active_count())


def grown(before: Held, now: Held, environments: int) -> Iterator[str]:
    """One sentence if there are many more than before, and than a trainer with so many environments takes."""
    files, threads = now.files - before.files, now.threads - before.threads
    if files > ALLOWED_FILES + FILES_AN_ENVIRONMENT * environments or threads > ALLOWED_THREADS:
        yield (
            f"this process has {max(files, 0)} open files and {max(threads, 0)} threads more than when training began: "
            "a plugin, a reward or an environment does not close what it opens, and a longer run will end by it"
        )
