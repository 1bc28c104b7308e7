"""The question as the answering model gets it: passages in pool order, then the question.

Every passage begins with a line ``[number] title``; its text follows as one line, so that no text can look like another
passage or like the question. Passage ids are not shown, so that an answer depends on texts alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from budwood_lcqa_selector.records import Passage
from budwood_lcqa_selector.text import one_line

if TYPE_CHECKING:
    from budwood_models import Conversation

ABSTENTION = "unknown"
INSTRUCTION = (
    "Answer the question from the passages. Reply with the answer alone, in as few words as possible. "
    f"If the passages do not answer it, reply: {ABSTENTION}"
)
CLOSED_BOOK = "Answer the question. Reply with the answer alone, in as few words as possible."
_QUESTION = "\n\nQuestion: "
PROMPT_HASH = hashlib.sha256("\n".join([INSTRUCTION, CLOSED_BOOK, _QUESTION, "one line a text"]).encode()).hexdigest()[
    :16
]


def answer_prompt(question: str, passages: Sequence[Passage]) -> Conversation:
    blocks = [
        f"[{i}] {one_line(passage.title)}\n{one_line(passage.text)}" for i, passage in enumerate(passages, start=1)
    ]
    return [
        {"role": "system", "content": INSTRUCTION if passages else CLOSED_BOOK},
        {"role": "user", "content": "\n\n".join(blocks) + _QUESTION + one_line(question)},
    ]


def read_prompt(conversation: Conversation) -> tuple[str, str]:
    """(passages as one text, question) of an answering prompt: for generators that compute instead of continuing text."""
    passages, _, question = conversation[-1]["content"].rpartition(_QUESTION)
    return passages, question
