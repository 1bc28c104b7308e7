"""A generator without a model: the sentence of the passages that shares most words with the question (oracle 12.8).

Deterministic and offline. With the judge ``contains`` it makes regression numbers over real questions, not a claim of quality.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from budwood_lcqa_selector.answering import Conversation, read_prompt
from budwood_lcqa_selector.text import count_tokens, sentences, words

if TYPE_CHECKING:
    from budwood_models import Reply

_HEADING = re.compile(r"^\[\d+\] .*$", re.MULTILINE)


class ExtractiveGenerator:
    identity: Mapping[str, Any] = {"generator": "extractive", "version": 1}

    def generate(
        self, prompts: Sequence[Conversation], *, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[Reply]:
        from budwood_models import Reply

        replies = []
        for prompt in prompts:
            text = best_sentence(*read_prompt(prompt))
            replies.append(Reply(text, count_tokens(prompt[-1]["content"]), count_tokens(text), truncated=False))
        return replies


def best_sentence(passages: str, question: str) -> str:
    """The first of the sentences that hold most different words of the question; '' without passages."""
    asked = set(words(question))
    found = sentences(_HEADING.sub("", passages))
    return max(found, key=lambda sentence: len(asked.intersection(words(sentence))), default="")
