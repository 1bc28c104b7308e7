"""The picker inside retrieval chains: one module a library, each under an extra of its name."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from budwood_lcqa_selector.records import Passage
from budwood_lcqa_selector.selecting import Picked, Picker, pick

log = logging.getLogger(__name__)


def kept(question: str, texts: Sequence[str], picker: Picker) -> tuple[list[int], Picked]:
    """Places of the chosen texts, in their order. A malformed answer chooses nothing: all are kept, with a warning."""
    found = pick(question, [Passage(id=str(place), text=text) for place, text in enumerate(texts)], picker)
    if found.error is not None:
        log.warning("the picker's answer was malformed (%s): all %d passages are kept", found.error, len(texts))
        return list(range(len(texts))), found
    return [int(name) for name in found.ids], found
