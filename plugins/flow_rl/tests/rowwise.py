"""Arithmetic that does not know how many rows it is done over.

A replay stacks the steps of a chain, so it has more rows than the rollout had. BLAS chooses its kernel by the number of rows,
and some activations end a tensor in other instructions than its body, so that the same row is rounded differently in the two:
by some 1e-5 of a ratio in these tests, whatever the code that is tested does. In here such functions of float32 are computed
in float64 and rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

PRODUCTS = {
    functional.conv2d,
    functional.linear,
    functional.multi_head_attention_forward,
    functional.scaled_dot_product_attention,
    torch._native_multi_head_attention,
    torch.bmm,
    torch.matmul,
    torch.Tensor.bmm,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
}
ACTIVATIONS = {
    functional.gelu,
    functional.mish,
    functional.sigmoid,
    functional.silu,
    torch.sigmoid,
    torch.Tensor.sigmoid,
}


class Rowwise(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function not in PRODUCTS | ACTIVATIONS:
            return function(*args, **(kwargs or {}))
        return tree_map(_narrow, function(*tree_map(_wide, args), **tree_map(_wide, kwargs or {})))


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value


def _narrow(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.float64 else value
