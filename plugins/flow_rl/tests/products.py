"""Matrix products that do not know how many rows they are taken over.

A replay stacks the steps of a chain, so its products have more rows than those of the rollout. Where BLAS chooses its kernel
by the number of rows, as on processors without AVX-512, the same row is rounded differently in the two: by up to 1.5e-5 of a
ratio in these tests, whatever the code that is tested does. In here a product of float32 is taken in float64 and rounded once.
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


class RowwiseProducts(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function not in PRODUCTS:
            return function(*args, **(kwargs or {}))
        return tree_map(_narrow, function(*tree_map(_wide, args), **tree_map(_wide, kwargs or {})))


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value


def _narrow(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.float64 else value
