"""A selector put to the test: what it picks against the gold sets, and what the generator answers from the pick alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from budwood_lcqa_selector.asking import Ask, Asker, Subject
from budwood_lcqa_selector.baselines import Selector
from budwood_lcqa_selector.judges import exact_match, token_f1
from budwood_lcqa_selector.metrics import Scored, evidence
from budwood_lcqa_selector.records import Choice, PoolRow

OVER = 1
"""A pick of more than the gold set and this many passages is over-selected: the margin of the second stage."""


def score(rows: Sequence[PoolRow], select: Selector, asker: Asker | None = None) -> Iterator[Scored]:
    """Every row measured. Without ``asker`` nothing is answered, and only evidence and size are.

    ``accuracy``: the judge's verdict; ``em`` and ``answer_f1``; ``evidence_*``, ``exact_set``, ``covered``,
    ``over_select``; ``size`` and ``tokens`` of the pick, ``kept``: its part of the pool's tokens; ``invalid`` and
    ``invalid/<error>``; per question, ``select_s``, ``generator_s``, ``generator_tokens`` and ``judge_tokens``. A
    malformed choice is an empty one.
    """
    for start in range(0, len(rows), asker.batch_size if asker else 1):
        some = rows[start : start + (asker.batch_size if asker else 1)]
        choices, seconds = [], []
        for row in some:
            began = time.perf_counter()
            choices.append(select(row))
            seconds.append(time.perf_counter() - began)
        answered = _answers(some, choices, asker) if asker else [{} for _ in some]
        for row, choice, took, answer in zip(some, choices, seconds, answered, strict=True):
            yield Scored(row.qid, row.root_qid, {**picked(row, choice), "select_s": took, **answer})


def picked(row: PoolRow, choice: Choice) -> dict[str, float | None]:
    """The numbers of a choice that need no answer."""
    ids = choice.ids if choice.valid else ()
    tokens = sum(passage.n_tokens for passage in row.chosen(ids))
    found: dict[str, float | None] = {
        "size": float(len(ids)),
        "tokens": float(tokens),
        "kept": tokens / row.n_tokens if row.n_tokens else None,
        "invalid": float(not choice.valid),
    }
    if choice.error is not None:
        found[f"invalid/{choice.error}"] = 1.0
    if row.gold_sets:
        best = evidence(ids, row.gold_sets)
        smallest = min(len(gold) for gold in row.gold_sets)
        found |= {
            "evidence_precision": best.precision,
            "evidence_recall": best.recall,
            "evidence_f1": best.f1,
            "exact_set": best.exact,
            "covered": best.covered,
            "over_select": float(len(ids) > smallest + OVER),
        }
    return found


def _answers(rows: Sequence[PoolRow], choices: Sequence[Choice], asker: Asker) -> list[Mapping[str, float | None]]:
    asks = []
    for row, choice in zip(rows, choices, strict=True):
        wanted = set(choice.ids if choice.valid else ())
        asks.append(Ask(Subject(row), frozenset(i for i, name in enumerate(row.ids) if name in wanted)))
    found: list[Mapping[str, float | None]] = []
    for row, stored in zip(rows, asker.answers(asks), strict=True):
        if stored is None:
            found.append({"no_verdict": 1.0})
            continue
        found.append(
            {
                "no_verdict": 0.0,
                "accuracy": float(stored.correct),
                "em": float(exact_match(stored.answer, row.answers)),
                "answer_f1": token_f1(stored.answer, row.answers),
                "generator_tokens": float(stored.prompt_tokens + stored.completion_tokens),
                "judge_tokens": float(stored.judge_tokens),
                "generator_s": stored.seconds,
            }
        )
    return found
