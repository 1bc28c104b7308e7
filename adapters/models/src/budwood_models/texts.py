"""What encoders and rerankers share: texts are checked, grouped by length, and answered in the order they came in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from budwood_models.errors import ModelError

if TYPE_CHECKING:
    from budwood.api import Array


def check_texts(texts: Sequence[str]) -> list[str]:
    """``texts`` as a list; a single text and anything that is no text are errors."""
    if isinstance(texts, str):
        raise ModelError("one text was given where a list of texts is wanted", do="Write [text]")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ModelError(f"texts[{i}] is {type(text).__name__}, not text")
    return list(texts)


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, the longest first: what does not fit into memory fails at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def in_batches(
    rows: Sequence[Sequence[int]], batch_size: int, answer: Callable[[list[int]], Array], shape: tuple[int, ...]
) -> Array:
    """``answer(indices)`` of every batch, put together to ``(len(rows), *shape)`` float32."""
    import numpy as np

    found = np.zeros((len(rows), *shape), np.float32)
    for batch in by_length([len(row) for row in rows], batch_size):
        found[batch] = answer(batch)
    return found
