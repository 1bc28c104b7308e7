"""An episode before training and one after it, as moving pictures in the run's folder and in its report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from budwood.api import Array, Picture, RunCallback, RunControl

if TYPE_CHECKING:
    from PIL.Image import Image

BEFORE, AFTER = "rollout_before.gif", "rollout_after.gif"
TITLES = {BEFORE: "An episode before training", AFTER: "An episode after training"}
LARGEST = 320
"""Pixels of a frame's longer side, at most: films are part of the report."""
FRAMES = 250
"""Frames of a film, at most; of a longer episode every second, third or so."""
Show = Callable[[Array], None]
Play = Callable[[Show], tuple[float, str]]
"""Plays an episode of the policy of now without noise, gives its frames (height, width, 3) uint8 to ``show``, and returns how
many of them are a second and in which words the policy was told its task, if any. Generators stay as they are."""


class Film(RunCallback):
    across_processes = "first"

    def __init__(self, folder: Path, play: Play) -> None:
        self.folder, self._play = folder, play

    def on_run_start(self, control: RunControl) -> None:
        if not (self.folder / BEFORE).exists():  # it does after a resume
            self._shoot(self.folder / BEFORE)

    def on_run_end(self, control: RunControl) -> None:
        self._shoot(self.folder / AFTER)

    def _shoot(self, path: Path) -> None:
        frames: list[Image] = []
        fps, words = self._play(lambda frame: frames.append(shrunk(frame)))
        every = -(-len(frames) // FRAMES)
        save(path, frames[::-every][::-1], fps / every, words)


def pictures(folder: Path | None) -> list[Picture]:
    """The films of a run that are there, for its report."""
    if folder is None:
        return []
    found = ((title, folder / name) for name, title in TITLES.items())
    return [Picture(_titled(title, path), path.read_bytes(), "image/gif") for title, path in found if path.exists()]


def _titled(title: str, path: Path) -> str:
    from PIL import Image

    with Image.open(path) as film:
        words = film.info.get("comment", b"").decode()
    return f"{title}: {words}" if words else title


def shrunk(frame: Array) -> Image:
    from PIL import Image

    made = Image.fromarray(np.asarray(frame, dtype=np.uint8))
    made.thumbnail((LARGEST, LARGEST))
    return made


def save(path: Path, frames: list[Image], fps: float, words: str) -> None:
    """Whole or not at all. ``words`` become the file's comment."""
    part, (first, *rest) = path.with_suffix(".part"), frames
    milliseconds = max(20, round(1000 / fps))  # viewers play shorter ones slower
    first.save(part, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0, comment=words.encode())
    part.replace(path)
