"""Generators that compute an answer instead of continuing a text: they take the place of a language model where no
model is needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from budwood_lcqa_selector.answering import read_prompt
from budwood_lcqa_selector.text import count_tokens

if TYPE_CHECKING:
    from budwood_models import Conversation, Reply


class ComputedGenerator(ABC):
    """The protocol of ``budwood_models.Generator``; sampling options have nothing to act on."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]: ...

    @abstractmethod
    def answer(self, passages: str, question: str) -> str: ...

    def generate(
        self, prompts: Sequence[Conversation], *, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[Reply]:
        return [reply for _, reply in self.stream(prompts, max_tokens=max_tokens)]

    def stream(
        self, prompts: Sequence[Conversation], *, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[tuple[int, Reply]]:
        from budwood_models import Reply

        for i, prompt in enumerate(prompts):
            text = self.answer(*read_prompt(prompt))
            yield i, Reply(text, count_tokens(prompt[-1]["content"]), count_tokens(text), truncated=False)
