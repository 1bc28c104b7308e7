"""The random generators of a process (python, numpy, torch) as a state tree. Imports torch, so it is asked for by name."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from budwood.api.state import StateTree


def generators() -> StateTree:
    """The state of every generator that belongs to the process and not to an object."""
    version, words, gauss = random.getstate()
    algorithm, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": np.array(words, np.uint32), "gauss": gauss},
        "numpy": {"algorithm": algorithm, "keys": keys, "position": position, "gauss": [has_gauss, cached]},
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
    }


def set_generators(state: StateTree) -> None:
    """The inverse of :func:`generators`."""
    python, legacy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state((legacy["algorithm"], legacy["keys"], legacy["position"], *legacy["gauss"]))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])  # fewer may be visible than there were


@contextmanager
def set_aside(seed: int) -> Iterator[None]:
    """Every generator seeded with ``seed`` for a while, and then as it was."""
    before = generators()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_generators(before)
