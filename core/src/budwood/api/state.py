"""State that a checkpoint carries."""

from __future__ import annotations

import sys
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
StateTree = dict[str, Any]
"""Nested dicts, lists and tuples of numpy arrays and scalars, torch tensors, str, bytes, bool, int, float and None."""


@runtime_checkable
class Stateful(Protocol):
    """Anything whose state a checkpoint must carry. Its class may say ``across_processes``: see :data:`budwood.api.Across`."""

    def state_dict(self) -> StateTree: ...

    def load_state_dict(self, state: StateTree) -> None: ...


def copied(value: Any) -> Any:
    """The same tree with every tensor copied to the CPU, without gradient: a state that training does not move."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(item) for item in value)
    return value


def storable(value: Any) -> bool:
    """Whether ``value`` may be part of a :data:`StateTree`: to ask before keeping what comes from a user's code."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str, bytes):
        return True
    if kind in (list, tuple):
        return all(storable(item) for item in value)
    if isinstance(value, dict):
        return all(type(key) in (str, int) and storable(item) for key, item in value.items())
    if isinstance(value, np.generic):
        return value.dtype.kind not in "OV"
    if kind is np.ndarray:
        return not value.dtype.hasobject
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return False
    return value.layout is torch.strided and not value.is_quantized and not value.is_meta
