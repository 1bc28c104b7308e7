"""A generator without a model: the sentence of the passages that shares most words with the question (oracle 12.8).

Deterministic and offline. With the judge ``contains`` it makes regression numbers over real questions, not a claim of
quality.
"""

from __future__ import annotations

import re

from budwood_lcqa_selector.computed import ComputedGenerator
from budwood_lcqa_selector.text import sentences, words

_HEADING = re.compile(r"^\[\d+\] .*$", re.MULTILINE)


class ExtractiveGenerator(ComputedGenerator):
    identity = {"generator": "extractive", "version": 1}  # noqa: RUF012

    def answer(self, passages: str, question: str) -> str:
        return best_sentence(passages, question)


def best_sentence(passages: str, question: str) -> str:
    """The first of the sentences that hold most different words of the question; '' without passages."""
    asked = set(words(question))
    found = sentences(_HEADING.sub("", passages))
    return max(found, key=lambda sentence: len(asked.intersection(words(sentence))), default="")
