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
"""Frames of a film, at most."""
Show = Callable[[Array], None]


class Film(RunCallback):
    """``play(show)`` plays an episode of the policy of now without noise, gives ``show`` its frames (height, width, 3) uint8,
    and returns how many of them are a second. It is to leave the generators of the training as they are."""

    across_processes = "first"

    def __init__(self, folder: Path, play: Callable[[Show], float]) -> None:
        self.folder, self._play = folder, play

    def on_run_start(self, control: RunControl) -> None:
        if not (self.folder / BEFORE).exists():  # it does after a resume
            self._shoot(self.folder / BEFORE)

    def on_run_end(self, control: RunControl) -> None:
        self._shoot(self.folder / AFTER)

    def _shoot(self, path: Path) -> None:
        frames: list[Image] = []
        fps = self._play(lambda frame: frames.append(shrunk(frame)))
        every = -(-len(frames) // FRAMES)
        save(path, [*frames[:-1:every], frames[-1]], fps / every)


def pictures(folder: Path | None) -> list[Picture]:
    """The films of a run that are there, for its report."""
    if folder is None:
        return []
    found = ((title, folder / name) for name, title in TITLES.items())
    return [Picture(title, path.read_bytes(), "image/gif") for title, path in found if path.exists()]


def shrunk(frame: Array) -> Image:
    from PIL import Image

    made = Image.fromarray(np.asarray(frame, dtype=np.uint8))
    made.thumbnail((LARGEST, LARGEST))
    return made


def save(path: Path, frames: list[Image], fps: float) -> None:
    first, *rest = frames
    first.save(path, save_all=True, append_images=rest, duration=max(20, round(1000 / fps)), loop=0)
