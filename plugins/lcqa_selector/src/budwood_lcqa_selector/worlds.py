"""Fact chains: questions over several hops whose minimal sufficient sets are known by construction (oracle 12.1).

A world is a chain E0 -r1-> E1 -r2-> ... -rh-> Eh of invented entities. One passage states one fact, "The r of X is
Y.", among filler that states none. The question asks for Eh; distractors state facts that share an entity or a
relation with the chain and never open another way to it. :class:`SymbolicGenerator` answers by following the
relations through the passages it is shown, so a judge over it is exact, and monotone: more passages never make a
right answer wrong.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import product

from budwood_lcqa_selector.computed import ComputedGenerator
from budwood_lcqa_selector.records import Passage, PoolRow

RELATIONS = (
    "employer", "founder", "birthplace", "capital", "teacher", "publisher", "sponsor", "architect",
    "neighbour", "successor", "patron", "namesake", "director", "headquarters", "sibling", "landlord",
)  # fmt: skip
FILLER = (
    "Records of this period are incomplete.",
    "Several letters from that year survive.",
    "Visitors often ask about it.",
    "The archive was moved twice.",
    "Opinions on the matter differ.",
    "A second edition followed soon after.",
    "Nothing else was written down.",
    "Local papers mentioned it briefly.",
)
_SYLLABLES = ("ba", "do", "fe", "gu", "ka", "lo", "mi", "nu", "pe", "ra", "si", "ta", "vo", "wen", "xi", "zor")
_FACT = re.compile(r"The ([a-z]+) of ([A-Z]\w*) is ([A-Z]\w*)\.")

Fact = tuple[str, str, str]  # relation, subject, object


def fact_chain(
    seed: int, *, hops: int = 2, pool: int = 10, chains: int = 1, copies: int = 1, filler: int = 2, front: bool = False
) -> PoolRow:
    """A question of ``hops`` relations over a pool of ``pool`` passages, ``filler`` sentences in each.

    ``chains``: alternative ways to the answer, through entities of their own.  ``copies``: passages that state each
    fact of a way, with other filler.  ``gold_sets`` lists every minimal sufficient set: one copy of every fact of one
    way. ``front``: positions of gold passages are exponential with mean pool / 4, cut at the last one, as after a
    good retriever; else all positions are alike.

    :raises ValueError: for a pool smaller than the gold passages.
    """
    rng = random.Random(f"fact-chain {seed}")
    names = _Names(rng)
    start, answer = names.new(), names.new()
    asked = [rng.choice(RELATIONS) for _ in range(hops)]
    ways = []
    for _ in range(chains):
        nodes = [start, *(names.new() for _ in range(hops - 1)), answer]
        ways.append([(asked[i], nodes[i], nodes[i + 1]) for i in range(hops)])
    gold = [fact for way in ways for fact in way for _ in range(copies)]
    if len(gold) > pool:
        raise ValueError(f"{len(gold)} gold passages do not fit into a pool of {pool}")
    others = _distractors(rng, names, ways, pool - len(gold))
    places = _positions(rng, pool, len(gold), front)
    facts = _arranged(gold, others, places)
    passages = [_passage(rng, i, fact, filler) for i, fact in enumerate(facts)]
    ids = iter(passages[place].id for place in places)
    stated = [[[next(ids) for _ in range(copies)] for _ in way] for way in ways]
    return PoolRow(
        qid=f"chain-{seed}",
        question=f"What is the {' of the '.join(reversed(asked))} of {start}?",
        answers=(answer,),
        passages=tuple(passages),
        gold_sets=tuple(tuple(choice) for way in stated for choice in product(*way)),
        gold_origin="constructed",
    )


class _Names:
    """Invented entity names, none twice."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.used = rng, set[str]()

    def new(self) -> str:
        while (name := "".join(self.rng.choices(_SYLLABLES, k=4)).capitalize()) in self.used:
            pass
        self.used.add(name)
        return name


def _distractors(rng: random.Random, names: _Names, ways: Sequence[Sequence[Fact]], count: int) -> list[Fact]:
    """Facts about an entity of the chain under a relation not asked of it, or under an asked relation about somebody
    else."""
    steps = sorted({(relation, subject) for way in ways for relation, subject, _ in way})
    asked_of: dict[str, set[str]] = defaultdict(set)
    for relation, subject in steps:
        asked_of[subject].add(relation)
    found: list[Fact] = []
    for _ in range(count):
        relation, subject = rng.choice(steps)
        if rng.random() < 0.5:
            relation = rng.choice([other for other in RELATIONS if other not in asked_of[subject]])
        else:
            subject = names.new()
        found.append((relation, subject, names.new()))
    return found


def _positions(rng: random.Random, pool: int, count: int, front: bool) -> list[int]:
    if not front:
        return rng.sample(range(pool), count)
    places: list[int] = []
    while len(places) < count:
        if (place := min(pool - 1, int(rng.expovariate(4.0 / pool)))) not in places:
            places.append(place)
    return places


def _arranged(gold: Sequence[Fact], others: Sequence[Fact], places: Sequence[int]) -> list[Fact]:
    at = dict(zip(places, gold, strict=True))
    rest = iter(others)
    return [at[i] if i in at else next(rest) for i in range(len(gold) + len(others))]


def _passage(rng: random.Random, index: int, fact: Fact, filler: int) -> Passage:
    relation, subject, value = fact
    sentences = rng.sample(FILLER, k=min(filler, len(FILLER)))
    sentences.insert(rng.randint(0, len(sentences)), f"The {relation} of {subject} is {value}.")
    return Passage(id=f"p{index + 1}", title=subject, text=" ".join(sentences))


class SymbolicGenerator(ComputedGenerator):
    """Answers a fact chain by forward chaining over the facts it is shown; ``unknown`` where the chain breaks."""

    identity = {"generator": "symbolic", "version": 1}  # noqa: RUF012

    def answer(self, passages: str, question: str) -> str:
        return follow(passages, question)


def follow(passages: str, question: str) -> str:
    """The answer that the facts in ``passages`` give; several values are followed together, and listed in order."""
    known: dict[tuple[str, str], set[str]] = defaultdict(set)
    for relation, subject, value in _FACT.findall(passages):
        known[relation, subject].add(value)
    *relations, start = (
        question.removeprefix("What is the ").removesuffix("?").replace(" of the ", " of ").split(" of ")
    )
    frontier = {start}
    for relation in reversed(relations):
        frontier = set().union(*(known.get((relation, entity), set()) for entity in frontier))
    return ", ".join(sorted(frontier)) or "unknown"
