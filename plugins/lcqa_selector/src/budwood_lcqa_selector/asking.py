"""Asking whether passages suffice: prompt, generator, judge, and the store of answers in front of them.

A call is one prompt to the generator with its verdict. What the store knows costs no call.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from budwood_lcqa_selector.answer_cache import AnswerCache, Stored
from budwood_lcqa_selector.answering import PROMPT_HASH, answer_prompt
from budwood_lcqa_selector.judges import Answered, Judge
from budwood_lcqa_selector.records import PoolRow

if TYPE_CHECKING:
    from budwood_models import Conversation, Generator, Reply


@dataclass(frozen=True)
class Ask:
    """Is the question of ``subject`` answered from the passages at ``positions``? ``repeat`` tells votes on it apart."""

    subject: Subject
    positions: frozenset[int]
    repeat: int = 0


@dataclass(frozen=True, eq=False)
class Subject:
    """A row with what is hashed once for all questions about it."""

    row: PoolRow

    @property
    def abstain(self) -> bool:
        """Questions without an answer are marked as LongMemEval does."""
        return self.row.root_qid.endswith("_abs")

    @cached_property
    def digest(self) -> bytes:
        row = self.row
        return _digest([row.question, list(row.answers), self.abstain])

    @cached_property
    def passage_digests(self) -> list[bytes]:
        return [_digest([passage.title, passage.text]) for passage in self.row.passages]


def _digest(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


@dataclass
class Counts:
    """Of one :class:`Asker`: ``calls`` made, answers ``known`` before, tokens that passed, calls ``without_verdict``."""

    calls: int = 0
    known: int = 0
    without_verdict: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    judge_tokens: int = 0
    seconds: float = 0.0


@dataclass
class Asker:
    """``batch_size``: prompts in one request to the generator.

    An answer is judged and stored as soon as it is there (with a judge that calls a model: when its request is
    complete), so a crash loses what was under way and nothing else. Where the judge gave no verdict nothing is
    stored: asking again may bring one.
    """

    generator: Generator
    judge: Judge
    cache: AnswerCache
    batch_size: int = 8
    max_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    counts: Counts = field(default_factory=Counts)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Everything but the question and its passages that an answer depends on."""
        return {
            "generator": dict(self.generator.identity),
            "params": {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed},
            "answer_prompt": PROMPT_HASH,
            "judge": dict(self.judge.identity),
        }

    @cached_property
    def _digest(self) -> bytes:
        return _digest(self.identity)

    def key(self, ask: Ask) -> bytes:
        """Passages are always shown in the order of the pool, so a set has one key."""
        digests = ask.subject.passage_digests
        passages = [digests[position] for position in sorted(ask.positions)]
        return hashlib.sha256(b"".join([self._digest, ask.subject.digest, bytes([ask.repeat]), *passages])).digest()

    def answers(self, asks: Sequence[Ask]) -> list[Stored | None]:
        """One answer an ask, in order; None where the judge gave no verdict."""
        keys = [self.key(ask) for ask in asks]
        known = self.cache.get(keys)
        missing = {key: ask for key, ask in zip(keys, asks, strict=True) if key not in known}
        self.counts.known += len(known)
        for repeat in sorted({ask.repeat for ask in missing.values()}):
            items = [(key, ask) for key, ask in missing.items() if ask.repeat == repeat]
            for start in range(0, len(items), self.batch_size):
                known |= self._request(dict(items[start : start + self.batch_size]), repeat)
        return [known.get(key) for key in keys]

    def _request(self, asks: Mapping[bytes, Ask], repeat: int) -> dict[bytes, Stored]:
        began = time.perf_counter()
        keys, subjects = list(asks), [ask.subject for ask in asks.values()]
        prompts = [
            answer_prompt(ask.subject.row.question, [ask.subject.row.passages[i] for i in sorted(ask.positions)])
            for ask in asks.values()
        ]
        found: dict[bytes, Stored] = {}
        ready: list[tuple[int, Reply]] = []
        for item in self._replies(prompts, self.seed + repeat):
            ready.append(item)
            if self.judge.instant or len(ready) == len(prompts):
                seconds = (time.perf_counter() - began) / len(ready)
                found |= self._judged([(keys[i], subjects[i], reply) for i, reply in ready], seconds)
                ready, began = [], time.perf_counter()
        return found

    def _replies(self, prompts: Sequence[Conversation], seed: int) -> Iterable[tuple[int, Reply]]:
        """(index, reply) as they are ready, from generators that can tell."""
        options: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": seed}
        if stream := getattr(self.generator, "stream", None):
            return stream(prompts, **options)  # type: ignore[no-any-return]
        return enumerate(self.generator.generate(prompts, **options))

    def _judged(self, ready: Sequence[tuple[bytes, Subject, Reply]], seconds: float) -> dict[bytes, Stored]:
        """Verdicts on replies that took ``seconds`` each, stored where there is one."""
        verdicts = self.judge.score_all(
            [
                Answered(subject.row.question, subject.row.answers, reply.text, subject.abstain)
                for _, subject, reply in ready
            ]
        )
        found = {}
        counts = self.counts
        for (key, _, reply), verdict in zip(ready, verdicts, strict=True):
            counts.calls += 1
            counts.seconds += seconds
            counts.prompt_tokens += reply.prompt_tokens
            counts.completion_tokens += reply.completion_tokens
            counts.judge_tokens += verdict.tokens
            if verdict.correct is None:
                counts.without_verdict += 1
                continue
            tokens = reply.prompt_tokens, reply.completion_tokens, verdict.tokens
            found[key] = Stored(reply.text, verdict.correct, verdict.raw, *tokens, round(seconds, 6))
        self.cache.put(found)
        return found
