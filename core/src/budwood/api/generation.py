"""How text is generated and what it was worth, where a trainer lets a plugin decide.

Shapes: ``B`` completions, ``T`` tokens of the longest one, ``K`` rewards, groups of ``G`` completions of one prompt, whose
rows stand together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from budwood.api.state import Array


@dataclass(frozen=True)
class Generated:
    """``ids`` B lists of token ids, end-of-text included; ``log_probs`` of those ids under the policy that drew them, if known.

    ``prompt_ids`` replaces the request's where a rollout writes its prompts itself. ``mask`` has 1 where the policy wrote a
    token and 0 where something else did; None: it wrote them all. ``columns`` go to the rewards, beside the dataset's.
    """

    ids: Sequence[Sequence[int]]
    log_probs: Sequence[Sequence[float]] | None = None
    prompt_ids: Sequence[Sequence[int]] | None = None
    mask: Sequence[Sequence[int]] | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerationRequest:
    """B prompts, each repeated as often as it is to be completed.

    ``prompts`` as the dataset has them, ``prompt_ids`` as the trainer would feed them, ``generate`` completes B prompts of
    token ids in the trainer's own way. ``model`` and ``tokenizer`` are transformers'; ``settings`` are the trainer's sampling
    settings under the names of ``GenerationConfig``; ``step`` counts optimiser steps so far; ``training`` is False in an
    evaluation.
    """

    prompts: Sequence[Any]
    prompt_ids: Sequence[Sequence[int]]
    generate: Callable[[Sequence[Sequence[int]]], Generated]
    model: Any
    tokenizer: Any
    settings: Mapping[str, Any]
    step: int
    training: bool


RolloutFn = Callable[[GenerationRequest], Generated]
"""The whole of a rollout: turns, tools, other texts in between. ``request.generate`` is the claimed decoder's, if any."""

Decoder = Callable[[GenerationRequest], Generated]
"""Only the decoding: token ids in, token ids out, from the same distribution."""


@dataclass(frozen=True)
class ScoredCompletions:
    """``rewards`` (B, K) float32, NaN where a reward does not apply; ``columns`` and ``weights`` (K,) of them; ``group`` G;
    ``mask`` (B, T) 1 where a token counts; ``advantages`` (B,) float32 as the trainer computed them."""

    rewards: Array
    columns: tuple[str, ...]
    weights: Array
    group: int
    mask: Array
    advantages: Array


CompletionAdvantageFn = Callable[[ScoredCompletions], Array]
"""Returns advantages (B,), or (B, T) one a token."""
