"""An episode before training and one after it, as moving pictures in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from budwood.api import Array, Picture, RunCallback, RunControl
from budwood_flow_rl import environments
from budwood_flow_rl.start import FlowStart

BEFORE, AFTER = "rollout_before.gif", "rollout_after.gif"
TITLES = {BEFORE: "An episode before training", AFTER: "An episode after training"}
LARGEST = 320
"""Pixels of a frame's longer side, at most: films are part of the report."""
DECISIONS = 250
"""Frames of a film, at most: one a decision."""


class Film(RunCallback):
    """Without noise, in an environment of its own, and without touching the generators of the training."""

    across_processes = "first"

    def __init__(
        self, start: FlowStart, env_args: Mapping[str, Any], folder: Path, seed: int, model: Callable[[], Any]
    ) -> None:
        self.start, self.env_args, self.folder, self.seed, self._model = start, env_args, folder, seed, model

    def on_run_start(self, control: RunControl) -> None:
        if not (self.folder / BEFORE).exists():  # it does after a resume
            self._shoot(self.folder / BEFORE)

    def on_run_end(self, control: RunControl) -> None:
        self._shoot(self.folder / AFTER)

    def _shoot(self, path: Path) -> None:
        assert self.start.env_id is not None
        make = environments.factory(self.start.env_id, {**self.env_args, "render_mode": "rgb_array"})
        env = self.start.wrap_env(make())
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            frames = filmed(env, lambda obs: self._model().predict(obs, deterministic=True)[0], self.seed)
        fps = env.metadata.get("render_fps", 30) / self.start.shape.execute
        env.close()
        save(path, frames, fps)


def filmed(env: Any, act: Callable[[Array], Array], seed: int) -> list[Array]:
    """(height, width, 3) uint8 of the first state, and of the state after each decision of an episode."""
    obs, _ = env.reset(seed=seed)
    frames, over = [env.render()], False
    while not over and len(frames) < DECISIONS:
        obs, _, terminated, truncated, _ = env.step(act(obs))
        frames.append(env.render())
        over = terminated or truncated
    return frames


def pictures(folder: Path) -> list[Picture]:
    """The films of a run that are there, for its report."""
    found = ((title, folder / name) for name, title in TITLES.items())
    return [Picture(title, path.read_bytes(), "image/gif") for title, path in found if path.exists()]


def save(path: Path, frames: list[Array], fps: float) -> None:
    from PIL import Image

    shrunk = [Image.fromarray(np.asarray(frame, dtype=np.uint8)) for frame in frames]
    for frame in shrunk:
        frame.thumbnail((LARGEST, LARGEST))
    first, *rest = shrunk
    first.save(path, save_all=True, append_images=rest, duration=max(20, round(1000 / fps)), loop=0)
