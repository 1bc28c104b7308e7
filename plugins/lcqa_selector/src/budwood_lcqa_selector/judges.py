"""Whether an answer is right, given accepted references.

A judge scores batches and says who it is: ``identity`` goes into the key of every stored answer, so that scores of
different judges, or of one judge under another prompt, are never taken for each other.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from budwood_lcqa_selector.answering import ABSTENTION
from budwood_lcqa_selector.text import answer_words, one_line

if TYPE_CHECKING:
    from budwood_models import Generator


@dataclass(frozen=True)
class Answered:
    """``abstain``: the question has no answer, and saying so is right."""

    question: str
    references: Sequence[str]
    answer: str
    abstain: bool = False


@dataclass(frozen=True)
class Verdict:
    """``correct`` is None where the judge gave no verdict that can be read; ``raw``: its words, ``tokens``: what they
    cost."""

    correct: bool | None
    raw: str = ""
    tokens: int = 0


class Judge(ABC):
    """``instant``: it costs nothing, so every answer is judged as soon as it is there, without waiting for others."""

    instant = False

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]: ...

    @abstractmethod
    def score_all(self, answered: Sequence[Answered]) -> list[Verdict]:
        """One verdict an answer, in order."""

    def score(self, question: str, references: Sequence[str], answer: str) -> Verdict:
        return self.score_all([Answered(question, references, answer)])[0]


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Same words as a reference after normalisation (SQuAD's EM)."""
    return any(answer_words(answer) == answer_words(reference) for reference in references)


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Best harmonic mean of word precision and recall over the references (SQuAD's F1)."""
    return max((_f1(answer_words(answer), answer_words(reference)) for reference in references), default=0.0)


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2.0 * shared / (len(found) + len(wanted))


def contains(answer: str, references: Sequence[str]) -> bool:
    """A reference stands in the answer as whole words; a reference that normalises to nothing never does."""
    text = f" {' '.join(answer_words(answer))} "
    return any(words and f" {' '.join(words)} " in text for words in map(answer_words, references))


class _Lexical(Judge):
    """A judge that compares words; its reply is a number. To a question without an answer, the word that the answering
    prompt asks for is right too."""

    def value(self, answer: str, references: Sequence[str]) -> float:
        raise NotImplementedError

    instant = True
    threshold = 1.0

    def score_all(self, answered: Sequence[Answered]) -> list[Verdict]:
        values = [
            self.value(item.answer, [*item.references, ABSTENTION] if item.abstain else item.references)
            for item in answered
        ]
        return [Verdict(value >= self.threshold, f"{value:.4f}") for value in values]

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"judge": type(self).__name__, "threshold": self.threshold, "abstention": ABSTENTION}


class ExactMatch(_Lexical):
    def value(self, answer: str, references: Sequence[str]) -> float:
        return float(exact_match(answer, references))


class Contains(_Lexical):
    def value(self, answer: str, references: Sequence[str]) -> float:
        return float(contains(answer, references))


class TokenF1(_Lexical):
    def __init__(self, threshold: float = 0.8) -> None:
        self.threshold = threshold

    def value(self, answer: str, references: Sequence[str]) -> float:
        return token_f1(answer, references)


RUBRIC = """You grade the answer to a question. It is correct if it means the same as one of the references, contradicts none \
of their facts and invents nothing that changes the meaning. Wording, length and order do not matter.
Reply with one line of JSON: {"verdict": "correct"} or {"verdict": "incorrect"}."""
ABSTAIN_RUBRIC = """You grade the answer to a question that cannot be answered from what was given. It is correct if it says \
so, and incorrect if it gives an answer.
Reply with one line of JSON: {"verdict": "correct"} or {"verdict": "incorrect"}."""


class LLMJudge(Judge):
    """A language model with a rubric; any generator, best of another family than the one that answers."""

    def __init__(
        self, generator: Generator, rubric: str = RUBRIC, abstain_rubric: str = ABSTAIN_RUBRIC, max_tokens: int = 32
    ) -> None:
        self.generator, self.rubric, self.abstain_rubric, self.max_tokens = (
            generator,
            rubric,
            abstain_rubric,
            max_tokens,
        )

    @property
    def identity(self) -> Mapping[str, Any]:
        prompts = f"{self.rubric}\n{self.abstain_rubric}".encode()
        return {
            "judge": "llm",
            "model": dict(self.generator.identity),
            "prompt": hashlib.sha256(prompts).hexdigest()[:16],
            "max_tokens": self.max_tokens,
            "reading": READING,
        }

    def score_all(self, answered: Sequence[Answered]) -> list[Verdict]:
        prompts = [self.prompt(item) for item in answered]
        replies = self.generator.generate(prompts, max_tokens=self.max_tokens, temperature=0.0)
        return [
            Verdict(read_verdict(reply.text), reply.text, reply.prompt_tokens + reply.completion_tokens)
            for reply in replies
        ]

    def prompt(self, item: Answered) -> list[dict[str, str]]:
        references = "\n".join(f"- {one_line(reference)}" for reference in item.references)
        content = f"Question: {one_line(item.question)}\nReferences:\n{references}\nAnswer: {one_line(item.answer)}"
        rubric = self.abstain_rubric if item.abstain else self.rubric
        return [{"role": "system", "content": rubric}, {"role": "user", "content": content}]


_SAID = (
    r"[\s*]*:[\s*]*(?:([\"']?)(correct|incorrect|true|false|yes|no|0|1|null|none)[\s*.!]*(?:\1[\s*]*(?=[,}\n]|\Z)|\Z))?"
)
_QUOTED = re.compile(rf"[\"'](?:verdict|correct)[\"']{_SAID}", re.IGNORECASE)
_BARE = re.compile(rf"\b(?:verdict|correct)\b{_SAID}", re.IGNORECASE)
_AGAINST = re.compile(r"\b(?:incorrect|inaccurate|wrong|not|false|no)\b|n't\b", re.IGNORECASE)
_HEDGED = re.compile(r"\b(?:but|however|would|should|partly|partially|almost|nearly)\b", re.IGNORECASE)
_AT_THE_END = re.compile(r"\b(?:correct|true|yes)\W*\Z", re.IGNORECASE)
READING = 2
"""Number of the rules of :func:`read_verdict`: verdicts read by others are not reused."""


def read_verdict(reply: str) -> bool | None:
    """None where no verdict can be read, which is not the same as one against the answer.

    The value of a field ``verdict`` or ``correct``, quoted or not, the last if several; if one of them holds anything
    else there is no verdict. Without such a field: a word against comes first ("not correct", "INCORRECT"), and a
    word for counts at the end of the reply only, since "the correct answer is Rome" judges nothing.
    """
    if fields := _QUOTED.findall(reply) or _BARE.findall(reply):
        values = [value.lower() for _, value in fields]
        if any(value in {"", "null", "none"} for value in values):
            return None
        return values[-1] in {"correct", "true", "yes", "1"}
    if _AGAINST.search(reply):
        return False
    return True if _AT_THE_END.search(reply[-200:]) and not _HEDGED.search(reply) else None
