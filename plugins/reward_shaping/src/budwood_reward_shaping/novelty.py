"""How new a candidate is among the weights already tried. ``z`` are coordinates of weights, (M, d) new and (N, d) tried.

Every score is a pure function of its arguments, so a resumed search picks what the uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from budwood.api import Array


class Seeds(NamedTuple):
    """``target`` stays the same for a whole search, ``predictor`` belongs to one move of it."""

    target: int
    predictor: int


Score = Callable[[Array, Array, Seeds], Array]
"""(candidates (M, d), tried (N, d), seeds) -> (M,), larger is newer."""

HIDDEN, FEATURES, TRAINING_STEPS, LEARNING_RATE = 64, 8, 200, 1e-3


def uniform(candidates: Array, _tried: Array, _seeds: Seeds) -> Array:
    """No preference: the first of the random candidates is as good as any."""
    return np.zeros(len(candidates))


def maxmin(candidates: Array, tried: Array, _seeds: Seeds) -> Array:
    """Distance to the nearest point tried."""
    distances: Array = np.linalg.norm(candidates[:, None, :] - tried[None, :, :], axis=-1)  # (M, N)
    nearest: Array = distances.min(axis=1)
    return nearest


def rnd(candidates: Array, tried: Array, seeds: Seeds) -> Array:
    """|h(z) - f(z)|^2 of a fixed random network f and a predictor h, trained from scratch on all points tried."""
    target, predictor = (_network(candidates.shape[1], torch.Generator().manual_seed(seed)) for seed in seeds)
    seen, new = torch.from_numpy(tried), torch.from_numpy(candidates)
    with torch.no_grad():
        wanted, truth = target(seen), target(new)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=LEARNING_RATE)
    for _ in range(TRAINING_STEPS):
        optimizer.zero_grad()
        (predictor(seen) - wanted).square().sum(dim=1).mean().backward()
        optimizer.step()
    with torch.no_grad():
        error: Array = (predictor(new) - truth).square().sum(dim=1).numpy()
    return error


def _network(size: int, generator: torch.Generator) -> nn.Module:
    """size -> 64 -> 64 -> 8, ReLU, with PyTorch's usual initial spread drawn from ``generator``."""
    shapes = ((size, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, FEATURES))
    layers: list[nn.Module] = []
    for inputs, outputs in shapes:
        layer = nn.Linear(inputs, outputs, dtype=torch.float64, device="meta").to_empty(device="cpu")
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


SCORES: Mapping[str, Score] = {"uniform": uniform, "maxmin": maxmin, "rnd": rnd}


def zscore(values: Array) -> Array:
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)


def predicted_performance(candidates: Array, tried: Array, performance: Array, bandwidth: float = 0.3) -> Array:
    """(M,) performance seen near each candidate: a Gaussian kernel regression on (N,) past values."""
    squared = np.square(candidates[:, None, :] - tried[None, :, :]).sum(axis=-1)  # (M, N)
    kernel = np.exp(-(squared - squared.min(axis=1, keepdims=True)) / (2.0 * bandwidth**2))
    estimate: Array = kernel @ performance / kernel.sum(axis=1)
    return estimate
