"""The question as the answering model gets it: passages in pool order, then the question.

Every passage begins with a line ``[number] title``; its text follows on lines of its own. Passage ids are not shown,
so that an answer depends on texts alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from budwood_lcqa_selector.records import Passage

if TYPE_CHECKING:
    from budwood_models import Conversation

INSTRUCTION = (
    "Answer the question from the passages. Reply with the answer alone, in as few words as possible. "
    "If the passages do not answer it, reply: unknown"
)
CLOSED_BOOK = "Answer the question. Reply with the answer alone, in as few words as possible."
_QUESTION = "\n\nQuestion: "
PROMPT_HASH = hashlib.sha256("\n".join([INSTRUCTION, CLOSED_BOOK, _QUESTION]).encode()).hexdigest()[:16]


def answer_prompt(question: str, passages: Sequence[Passage]) -> Conversation:
    blocks = [f"[{i}] {passage.title}\n{passage.text}" for i, passage in enumerate(passages, start=1)]
    return [
        {"role": "system", "content": INSTRUCTION if passages else CLOSED_BOOK},
        {"role": "user", "content": "\n\n".join(blocks) + _QUESTION + question},
    ]


def read_prompt(conversation: Conversation) -> tuple[str, str]:
    """(passages as one text, question) of an answering prompt: for generators that compute instead of continuing text."""
    passages, _, question = conversation[-1]["content"].rpartition(_QUESTION)
    return passages, question
