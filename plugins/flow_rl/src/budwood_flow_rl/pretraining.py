"""Behaviour cloning of a flow policy: a flow family fitted to the windows of demonstrations, its moving average kept.

Step ``k`` draws its batch and its noise from a generator seeded with (seed, k). So all there is to resume are parameters,
their average and AdamW's moments, and a run that was killed ends with the numbers of one that was not, bit for bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from budwood.api import Array, CheckpointError, ConfigError
from budwood_flow_rl import tensor_file
from budwood_flow_rl.demonstrations import Demonstrations, windows
from budwood_flow_rl.families import POLICIES
from budwood_flow_rl.normalisation import Normalisation
from budwood_flow_rl.saved import Meta, save_flow

TRAINING, METRICS = "training.safetensors", "metrics.jsonl"
KIND = "the state of a pre-training"
HELD_OUT_ROWS = 4096
"""Windows that the held-out loss is a mean over, at most."""


@dataclass(frozen=True)
class Settings:
    """``horizon``: actions predicted; ``chunk``: of them executed, by default all; ``ema``: weight of the past in the
    moving average; the learning rate falls from ``lr`` to ``lr_end`` by a half cosine; ``held_out``: share of the episodes
    that only measure; every ``every`` steps the loss is logged and the state kept."""

    family: str = "rectified"
    horizon: int = 4
    chunk: int | None = None
    hidden: tuple[int, ...] = (256, 256, 256)
    steps: int = 6000
    batch: int = 256
    ema: float = 0.995
    lr: float = 1e-3
    lr_end: float = 1e-4
    weight_decay: float = 1e-6
    held_out: float = 0.1
    seed: int = 0
    every: int = 500

    def __post_init__(self) -> None:
        if self.family not in POLICIES:
            near = get_close_matches(self.family, POLICIES, n=1)
            raise ConfigError(
                f"there is no family {self.family!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                where="pretrain --family",
                do=f"Families are {', '.join(POLICIES)}",
            )
        allowed = {
            "horizon": self.horizon >= 1,
            "chunk": self.chunk is None or 1 <= self.chunk <= self.horizon,
            "hidden": bool(self.hidden) and min(self.hidden) >= 1,
            "steps": self.steps >= 1,
            "batch": self.batch >= 1,
            "ema": 0 <= self.ema < 1,
            "lr": 0 < self.lr < math.inf,
            "lr_end": 0 < self.lr_end <= self.lr,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "held_out": 0 <= self.held_out < 1,
            "every": self.every >= 1,
        }
        wrong = [f"{name}={getattr(self, name)}" for name, good in allowed.items() if not good]
        if wrong:
            raise ConfigError(
                f"these settings are out of range: {', '.join(wrong)}",
                where="pretrain",
                do="A chunk is at most its horizon; shares lie between 0 and 1",
            )

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ..., ``steps`` - 1."""
        return self.lr_end + (self.lr - self.lr_end) * (1 + math.cos(math.pi * step / self.steps)) / 2


@dataclass(frozen=True)
class Pretrained:
    """How a pre-training ended: ``step`` of the settings' ``steps``, and the last losses."""

    step: int
    loss: float
    held_out_loss: float | None
    notes: list[str]


def average(averaged: nn.Module, current: nn.Module, decay: float) -> None:
    """One step of the moving average, in place: averaged <- decay averaged + (1 - decay) current; buffers are copied."""
    with torch.no_grad():
        for past, now in zip(averaged.parameters(), current.parameters(), strict=True):
            past.lerp_(now, 1 - decay)
        for old, new in zip(averaged.buffers(), current.buffers(), strict=True):
            old.copy_(new)


def generator_of(seed: int, step: int) -> torch.Generator:
    """The randomness of one step and of no other."""
    word = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word) >> 1)


def split(demonstrations: Demonstrations, share: float, seed: int) -> tuple[Array, Array]:
    """-> rows to learn from and rows to measure on: whole episodes, ``share`` of them (rounded up) to measure on.
    A single episode is not divided: it is learnt from, and nothing is measured."""
    episodes = len(demonstrations.lengths)
    held = min(math.ceil(share * episodes), episodes - 1)
    order = np.random.default_rng(seed).permutation(episodes)
    empty = np.zeros(0, dtype=np.int64)
    return demonstrations.rows(np.sort(order[held:])), demonstrations.rows(np.sort(order[:held])) if held else empty


class Pretraining:
    """One pre-training in a folder: ``flow.safetensors`` and ``flow.json`` (the average, to act with),
    ``training.safetensors`` (to go on from), ``metrics.jsonl``."""

    def __init__(self, folder: Path, demonstrations: Demonstrations, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.normalisation = Normalisation.of(demonstrations)
        self.notes = self.normalisation.notes
        self._observations = self.normalisation.observations.scale(torch.from_numpy(demonstrations.observations))
        self._actions = self.normalisation.actions.scale(torch.from_numpy(demonstrations.actions))
        self._windows = torch.from_numpy(windows(demonstrations.offsets, settings.horizon))
        rows, held = split(demonstrations, settings.held_out, settings.seed)
        self._rows = torch.from_numpy(rows)
        if len(held) > HELD_OUT_ROWS:
            held = np.random.default_rng(settings.seed).choice(held, HELD_OUT_ROWS, replace=False)
        self._held = torch.from_numpy(held)
        self.field = self._made(demonstrations)
        self.averaged = deepcopy(self.field).requires_grad_(False)
        self._optimiser = torch.optim.AdamW(self.field.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        self.step = 0
        self._meta = Meta(
            chunk=settings.chunk or settings.horizon,
            env_id=demonstrations.env_id,
            env_args=demonstrations.env_args,
            source={
                "demonstrations": {
                    "source": demonstrations.about.get("source"),
                    "steps": len(demonstrations),
                    "episodes": len(demonstrations.lengths),
                    "mean_return": demonstrations.mean_return,
                },
                "settings": _plain(settings),
            },
        )
        self._origin = {"settings": _plain(settings), "demonstrations": _identity(demonstrations)}

    def run(
        self,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int, Mapping[str, float]], None] = lambda *_: None,
    ) -> Pretrained:
        """Train to the last step, or until ``stop()`` after one; then save the average.

        :raises CheckpointError: the loss is NaN or infinite; what was kept before stays as it was.
        """
        settings, began, losses = self.settings, time.perf_counter(), []
        metrics: dict[str, float] = {}
        while self.step < settings.steps and not stop():
            losses.append(self._update())
            self.step += 1
            if self.step % settings.every == 0 or self.step == settings.steps:
                metrics = {"step": self.step, "loss": self._mean(losses), "lr": settings.rate(self.step - 1)}
                if len(self._held):
                    metrics["held_out_loss"] = self.held_out_loss()
                self._keep({**metrics, "seconds": round(time.perf_counter() - began, 3)})
                losses = []
            progress(self.step, metrics)
        last = self._mean(losses) if losses else metrics.get("loss", math.nan)
        if losses:
            self._keep(None)
        save_flow(self.folder, self.averaged, self.normalisation, self._meta)
        return Pretrained(self.step, last, self.held_out_loss() if len(self._held) else None, self.notes)

    def held_out_loss(self) -> float:
        """Of the average, on held-out windows, with the same noise each time."""
        with torch.no_grad():
            return float(self._loss(self.averaged, self._held, generator_of(self.settings.seed, self.settings.steps)))

    def resume(self) -> None:
        """Go on from the state in the folder. Metrics of later steps are removed: they come again.

        :raises CheckpointError: it is missing, damaged, or of other settings or demonstrations.
        """
        path = self.folder / TRAINING
        tensors, header = tensor_file.read(path, KIND, ("step", "origin"))
        changed = _changes(header["origin"], self._origin)
        if changed:
            raise CheckpointError(
                f"this pre-training was begun with others: {', '.join(changed)} changed",
                where=str(self.folder),
                do="Resume with the settings and the demonstrations it was begun with, or begin in another folder",
            )
        loaded = {name: torch.from_numpy(value) for name, value in tensors.items()}
        self.step = header["step"]
        self.field.load_state_dict(_under("field.", loaded))
        self.averaged.load_state_dict(_under("averaged.", loaded))
        count = len(list(self.field.parameters()))
        moments = {i: _under(f"adamw.{i}.", loaded) for i in range(count)}
        self._optimiser.load_state_dict(
            {"state": moments, "param_groups": self._optimiser.state_dict()["param_groups"]}
        )
        self._rewind_metrics()

    def _made(self, demonstrations: Demonstrations) -> Any:
        settings = self.settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return POLICIES[settings.family](
                obs_dim=demonstrations.observations.shape[1],
                horizon=settings.horizon,
                action_dim=demonstrations.actions.shape[1],
                hidden=settings.hidden,
            )

    def _loss(self, field: Any, rows: Tensor, generator: torch.Generator) -> Tensor:
        """rows (B,) -> scalar: the family's own loss on actions (B, H, D) after observations (B, O)."""
        loss: Tensor = field.pretrain_loss(self._actions[self._windows[rows]], self._observations[rows], generator)
        return loss

    def _update(self) -> float:
        settings, generator = self.settings, generator_of(self.settings.seed, self.step)
        rows = self._rows[torch.randint(len(self._rows), (settings.batch,), generator=generator)]
        for group in self._optimiser.param_groups:
            group["lr"] = settings.rate(self.step)
        loss = self._loss(self.field, rows, generator)
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss of step {self.step} is {loss.detach():g}")
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        average(self.averaged, self.field, settings.ema)
        return float(loss.detach())

    def _mean(self, losses: list[float]) -> float:
        return sum(losses) / len(losses)

    def _diverged(self, what: str) -> CheckpointError:
        return CheckpointError(
            what, where=str(self.folder), do="Use a smaller learning rate; what was kept before is as it was"
        )

    def _keep(self, metrics: Mapping[str, float] | None) -> None:
        if not all(torch.isfinite(value).all() for value in self.field.state_dict().values()):
            raise self._diverged(f"the update of step {self.step - 1} left weights that are not finite")
        tensors = {f"field.{name}": value for name, value in self.field.state_dict().items()}
        tensors |= {f"averaged.{name}": value for name, value in self.averaged.state_dict().items()}
        for i, moments in self._optimiser.state_dict()["state"].items():
            tensors |= {f"adamw.{i}.{name}": value for name, value in moments.items()}
        arrays = {name: value.detach().numpy() for name, value in tensors.items()}
        if metrics is not None:  # first: lines that are ahead of the state are removed on resuming
            self._log(metrics)
        tensor_file.write(self.folder / TRAINING, KIND, arrays, {"step": self.step, "origin": self._origin})

    def _log(self, metrics: Mapping[str, float]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise tensor_file.unwritable(self.folder / METRICS, error) from error

    def _rewind_metrics(self) -> None:
        path = self.folder / METRICS
        if not path.exists():
            return
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] <= self.step]
        tensor_file.replace(path, "".join(f"{line}\n" for line in kept).encode())


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _plain(settings: Settings) -> dict[str, Any]:
    return {**asdict(settings), "hidden": list(settings.hidden)}


def _identity(demonstrations: Demonstrations) -> str:
    arrays = {name: getattr(demonstrations, name) for name in ("observations", "actions", "offsets")}
    return tensor_file.digest(arrays)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = before["settings"], now["settings"]
    changed = [name for name in new if old.get(name) != new[name] and name != "every"]
    return changed + (["the demonstrations"] if before["demonstrations"] != now["demonstrations"] else [])
