"""Cutting documents into passages: by meaning, by size, or not at all.

A chunk is a span (start, end) of the document in characters, so that nothing is lost or rewritten. Sizes are in the
tokens of :func:`budwood_lcqa_selector.text.count_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from budwood_lcqa_selector.records import Passage
from budwood_lcqa_selector.text import count_tokens, sentence_spans, token_spans

if TYPE_CHECKING:
    from budwood_models import Encoder

Span = tuple[int, int]
Chunker = Callable[[str], list[Span]]

MINILM_THRESHOLD = 0.20
"""Where neighbouring sentences part for all-MiniLM-L6-v2; how it was found: docs/methods/lcqa_selector/mining.md. The
paper's 0.75 belongs to text-embedding-ada-002, whose cosines sit high; a threshold holds for one encoder."""


def identity(text: str) -> list[Span]:
    """One chunk: for data that comes in passages."""
    return [(0, len(text))] if text.strip() else []


def window(max_tokens: int = 256, overlap: int = 0) -> Chunker:
    """Chunks of ``max_tokens`` that share ``overlap`` tokens with the one before."""
    if not 0 <= overlap < max_tokens:
        raise ValueError(f"an overlap of {overlap} does not fit into windows of {max_tokens} tokens")

    def chunk(text: str) -> list[Span]:
        spans = list(token_spans(text))
        starts = range(0, max(len(spans) - overlap, min(len(spans), 1)), max_tokens - overlap)
        return [(spans[i][0], spans[min(i + max_tokens, len(spans)) - 1][1]) for i in starts]

    return chunk


def semantic(
    encoder: Encoder, threshold: float = MINILM_THRESHOLD, min_tokens: int = 32, max_tokens: int = 256
) -> Chunker:
    """A new chunk where the cosine of two neighbouring sentences falls under ``threshold`` (section 3 of arXiv
    2512.14465), or where one more sentence would pass ``max_tokens``. A chunk is not closed before ``min_tokens``,
    unless it would grow too big; a sentence longer than ``max_tokens`` is cut by :func:`window`."""

    def chunk(text: str) -> list[Span]:
        spans = _sized(text, max_tokens)
        if not spans:
            return []
        vectors = encoder.encode([text[start:end] for start, end in spans])  # (s, d) unit rows
        close = np.einsum("sd,sd->s", vectors[:-1], vectors[1:]) >= threshold  # (s - 1,)
        sizes = [count_tokens(text[start:end]) for start, end in spans]
        return joined(spans, sizes, close.tolist(), min_tokens, max_tokens)

    return chunk


def _sized(text: str, max_tokens: int) -> list[Span]:
    found: list[Span] = []
    cut = window(max_tokens)
    for start, end in sentence_spans(text):
        found += [(start + first, start + last) for first, last in cut(text[start:end])]
    return found


def joined(
    spans: Sequence[Span], sizes: Sequence[int], close: Sequence[bool], min_tokens: int, max_tokens: int
) -> list[Span]:
    """Neighbouring ``spans`` (s) made into chunks; ``close`` (s - 1): whether a span and the next belong together."""
    chunks: list[Span] = []
    start, size = spans[0][0], sizes[0]
    for i in range(1, len(spans)):
        if size + sizes[i] > max_tokens or (not close[i - 1] and size >= min_tokens):
            chunks.append((start, spans[i - 1][1]))
            start, size = spans[i][0], 0
        size += sizes[i]
    return [*chunks, (start, spans[-1][1])]


def cut(passages: Sequence[Passage], chunker: Chunker) -> list[Passage]:
    """Every passage cut into chunks; ids are ``<passage>.<number>`` where a passage became several. Blank ones are
    left out."""
    found: list[Passage] = []
    for passage in passages:
        spans = chunker(passage.text)
        for number, (start, end) in enumerate(spans, start=1):
            name = passage.id if len(spans) == 1 else f"{passage.id}.{number}"
            found.append(Passage(id=name, title=passage.title, text=passage.text[start:end], source_span=(start, end)))
    return found
