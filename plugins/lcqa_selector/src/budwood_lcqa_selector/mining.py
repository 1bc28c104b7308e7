"""Evidence mining: for every question, a set of passages that suffices and from which none can be left out. No
training.

Every question is a coroutine that asks about sets of its candidates; the :class:`Miner` keeps a window of them,
collects what they ask and puts it to the generator in batches. Results come in the order of the questions, memory
holds the window only, and everything asked is in the answer store: a run that was killed goes on by being started
again.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from budwood_lcqa_selector.answer_cache import Stored
from budwood_lcqa_selector.asking import Ask, Asker, Subject
from budwood_lcqa_selector.pooling import Pooling, mining_candidates
from budwood_lcqa_selector.records import PoolRow
from budwood_lcqa_selector.strategies import STRATEGIES, Candidates, certified

Outcome = Literal["mined", "closed_book", "insufficient", "no_verdict", "no_annotation"]


@dataclass(frozen=True)
class Mining:
    """``k`` candidates by BM25 on question and references; the paper gives no number.

    ``certify``: check what a strategy other than ``loo`` found, and repair it under a judge that is not monotone.
    ``closed_book``: what becomes of a question that the generator answers without passages: ``drop`` the row,
    ``keep_empty`` with the empty set as gold, or ``annotated`` keep the data's own evidence.  ``orders``: elimination
    orders, the first by relevance, the others shuffled; every distinct set found becomes a gold set.  ``votes``: odd;
    a set suffices if the majority of that many answers is right.  ``reask``: part of the questions asked that is
    asked once more, to measure how often a verdict flips.  ``evaluation``: pools as retrieval makes them, nothing put
    in.
    """

    strategy: str = "loo"
    k: int = 20
    certify: bool = True
    closed_book: Literal["drop", "keep_empty", "annotated"] = "drop"
    orders: int = 1
    votes: int = 1
    reask: float = 0.05
    seed: int = 0
    concurrency: int = 8
    evaluation: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"no strategy {self.strategy!r} among {', '.join(STRATEGIES)}")
        if self.votes % 2 == 0 or not 0 < self.votes < 100:
            raise ValueError(f"{self.votes} votes: an odd number below 100 is needed for a majority")
        if self.k < 1 or self.orders < 1 or self.concurrency < 1 or not 0 <= self.reask <= 1:
            raise ValueError("k, orders and concurrency start at 1, reask lies between 0 and 1")


@dataclass(frozen=True)
class Mined:
    """``row``: None if dropped, and ``outcome`` why; ``calls``: different sets this question was asked about;
    ``reasked`` of them once more, of which ``flipped`` got another verdict."""

    qid: str
    outcome: Outcome
    row: PoolRow | None
    calls: int
    reasked: int
    flipped: int


class NoVerdict(Exception):  # noqa: N818 - a turn of events inside a question, not an error
    """The judge's reply could not be read."""


Questions = Generator[list[Ask], list[Stored | None], Any]


@dataclass
class _Question:
    """One row under way: what it was told, and how its strategy's questions become asks with votes."""

    subject: Subject
    settings: Mining
    told: dict[Candidates, bool] = field(default_factory=dict)
    seconds: float = 0.0
    reasked: int = 0
    flipped: int = 0

    def ask(self, sets: Sequence[Candidates]) -> Generator[list[Ask], list[Stored | None], list[bool]]:
        """Whether each of ``sets`` suffices; what was told before is not asked again."""
        new = [positions for positions in dict.fromkeys(sets) if positions not in self.told]
        votes = self.settings.votes
        if new:
            again = [positions for positions in new if self._sampled(positions)]
            asks = [Ask(self.subject, positions, vote) for positions in new for vote in range(votes)]
            answers = yield [*asks, *(Ask(self.subject, positions, votes) for positions in again)]
            verdicts = [self._verdict(answer) for answer in answers]
            for i, positions in enumerate(new):
                self.told[positions] = 2 * sum(verdicts[i * votes : (i + 1) * votes]) > votes
            self.reasked += len(again)
            for positions, verdict in zip(again, verdicts[len(asks) :], strict=True):
                self.flipped += verdict != self.told[positions]
        return [self.told[positions] for positions in sets]

    def _verdict(self, answer: Stored | None) -> bool:
        if answer is None:
            raise NoVerdict
        self.seconds += answer.seconds
        return answer.correct

    def _sampled(self, positions: Candidates) -> bool:
        if not self.settings.reask:
            return False
        name = f"reask {self.settings.seed} {self.subject.row.qid} {sorted(positions)}"
        return random.Random(name).random() < self.settings.reask

    def mine(self) -> Generator[list[Ask], list[Stored | None], tuple[Outcome, list[Candidates]]]:
        """Sections 5.1 and 5.4: without passages first, then with all candidates, then one set an order."""
        ranked = mining_candidates(self.subject.row, self.settings.k)
        (closed_book,) = yield from self.ask([frozenset()])
        if closed_book:
            return "closed_book", [frozenset()]
        (enough,) = yield from self.ask([frozenset(ranked)])
        if not enough:
            return "insufficient", []
        found: list[Candidates] = []
        for order in self._orders(ranked):
            positions = yield from self._follow(order)
            if positions not in found:
                found.append(positions)
        return "mined", found

    def _orders(self, ranked: Sequence[int]) -> Iterator[list[int]]:
        yield list(ranked)
        for i in range(1, self.settings.orders):
            shuffled = list(ranked)
            random.Random(f"order {i} {self.settings.seed} {self.subject.row.qid}").shuffle(shuffled)
            yield shuffled

    def _follow(self, order: list[int]) -> Generator[list[Ask], list[Stored | None], Candidates]:
        strategy = STRATEGIES[self.settings.strategy]
        asking = certified(strategy, order) if self.settings.certify else strategy(order)
        try:
            sets = next(asking)
            while True:
                sets = asking.send((yield from self.ask(sets)))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


class Miner:
    def __init__(self, asker: Asker, settings: Mining | None = None, pooling: Pooling | None = None) -> None:
        self.asker = asker
        self.settings = settings or Mining()
        self.pooling = pooling or Pooling()

    def mine(self, rows: Iterable[PoolRow]) -> Iterator[Mined]:
        """One result a row, in order. Rows are read as they are needed."""
        source = iter(rows)
        window: deque[_Running] = deque()
        while True:
            while (
                sum(not question.done for question in window) < self.settings.concurrency and len(window) < self._ahead
            ):
                row = next(source, None)
                if row is None:
                    break
                window.append(_Running(_Question(Subject(row), self.settings)))
            while window and window[0].done:
                yield self._result(window.popleft())
            if not window:
                return
            self._step([question for question in window if not question.done])

    @property
    def _ahead(self) -> int:
        """How far finished questions may run ahead of a slow one."""
        return 8 * self.settings.concurrency

    def _step(self, running: Sequence[_Running]) -> None:
        asks = [ask for question in running for ask in question.asks]
        answers = iter(self.asker.answers(asks))
        for question in running:
            question.hear([next(answers) for _ in question.asks])

    def _result(self, running: _Running) -> Mined:
        question, row = running.question, running.question.subject.row
        outcome, sets = running.outcome, running.sets
        annotated = tuple(names for names in row.gold_sets if set(names).issubset(row.ids))
        if outcome == "closed_book" and self.settings.closed_book == "annotated" and not annotated:
            outcome = "no_annotation"
        facts = {"calls": len(question.told), "reasked": question.reasked, "flipped": question.flipped}
        kept = outcome == "mined" or (outcome == "closed_book" and self.settings.closed_book != "drop")
        if not kept:
            return Mined(row.qid, outcome, None, **facts)
        changes: dict[str, Any] = {
            "closed_book_ok": outcome == "closed_book",
            "mine_meta": {**self._about(), **facts, "seconds": round(question.seconds, 3)},
        }
        if outcome == "mined" or self.settings.closed_book == "keep_empty":
            names = [tuple(row.passages[i].id for i in sorted(positions)) for positions in sets]
            changes |= {"gold_sets": tuple(names), "gold_origin": "mined"}
        else:
            changes |= {"gold_sets": annotated}
        return Mined(row.qid, outcome, self._pooled(row.with_(**changes)), **facts)

    def _pooled(self, row: PoolRow) -> PoolRow:
        if self.settings.evaluation:
            return self.pooling.pool(row)
        return self.pooling.training_pool(row, self.settings.seed)

    def _about(self) -> Mapping[str, Any]:
        """How a row was mined, for whoever reads it later."""
        settings = self.settings
        return {
            **self.asker.identity,
            "strategy": settings.strategy,
            "order": "least relevant first",
            "orders": settings.orders,
            "k": settings.k,
            "votes": settings.votes,
            "seed": settings.seed,
        }


class _Running:
    """A question's coroutine, run up to what it asks next."""

    def __init__(self, question: _Question) -> None:
        self.question = question
        self.asks: list[Ask] = []
        self.done = False
        self.outcome: Outcome = "no_verdict"
        self.sets: list[Candidates] = []
        self._asking: Questions = question.mine()
        self._advance(lambda: next(self._asking))

    def hear(self, answers: list[Stored | None]) -> None:
        self._advance(lambda: self._asking.send(answers))

    def _advance(self, step: Any) -> None:
        try:
            self.asks = step()
        except StopIteration as finished:
            self.done, (self.outcome, self.sets) = True, finished.value
        except NoVerdict:
            self.done = True
