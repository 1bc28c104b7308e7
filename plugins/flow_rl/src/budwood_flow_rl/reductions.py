"""From log-densities of elements to one log-probability a chain, and by what its logarithm of the ratio is divided.

A policy reports the joint log-probability, a sum, so that KL divergences are comparable between reductions. What is divided
is the log-ratio, before it is clipped: with n terms a clip at eps allows a joint log-ratio of about n eps.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Reduction = Literal["sum", "mean_n", "mean_k"]
Support = Literal["executed", "all"]


def joint(elements: Tensor, support: Support, executed: tuple[int, int]) -> Tensor:
    """(B, H, D) -> (B,): the sum over every element, or over the executed (C, De): the first C steps, De real dimensions.

    Leaving elements out that the network mixes into the executed ones biases the gradient, unless they carry no noise.
    """
    if support == "executed":
        elements = elements[:, : executed[0], : executed[1]]
    return elements.flatten(1).sum(1)


def divisor(reduction: Reduction, K: int, hybrid: bool, support: Support, H: int, D: int, C: int, De: int) -> float:
    """What the joint log-ratio is divided by: 1, the number of terms, or of terms times elements.

    ``K`` stochastic steps and the initial term make K + 1 terms, a hybrid chain is one.
    """
    terms = 1 if hybrid else K + 1
    elements = C * De if support == "executed" else H * D
    return float({"sum": 1, "mean_k": terms, "mean_n": terms * elements}[reduction])
