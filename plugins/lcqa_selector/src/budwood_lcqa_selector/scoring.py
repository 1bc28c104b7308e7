"""The reward of a batch of answers. Each row is scored with the stage it carries; nothing is remembered but samples to show."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from budwood.api import Completions
from budwood_lcqa_selector.parsing import MALFORMED, Selection, parse
from budwood_lcqa_selector.reward import Mode, Score, score
from budwood_lcqa_selector.stages import TWO_STAGES, Stage

PREFIX = "lcqa_selector/"
SAMPLES = 8
"""Questions whose last answer is kept for the report."""


@dataclass(frozen=True)
class PickerScore:
    """``CompletionReward.fn``: B answers -> B rewards, None for a row without evidence to compare with.

    Reads the columns of :class:`.dataset.StageRows`; logs the parts of the reward, and keeps samples of evaluation rows.
    """

    stages: Sequence[Stage] = TWO_STAGES
    gamma: float = 0.5
    mode: Mode = "within"
    think: bool = False
    samples: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False)

    def __call__(self, completions: Completions) -> list[float | None]:
        columns = completions.columns
        found = [
            self._one(text, {name: values[i] for name, values in columns.items()})
            for i, text in enumerate(completions.texts)
        ]
        self._log(completions, found)
        return [None if scored is None else scored.value for _, scored, _ in found]

    def _one(self, text: str, row: Mapping[str, Any]) -> tuple[Selection, Score | None, float]:
        """The selection, its score, and the part of the pool's tokens that it keeps."""
        selection = parse(text, row["pool_ids"], think=self.think)
        gold_sets = json.loads(row["gold_sets"])
        red = self.stages[row["stage"]].red
        tokens = dict(zip(row["pool_ids"], row["pool_tokens"], strict=True))
        kept = sum(tokens[name] for name in selection.ids) / max(1, sum(tokens.values()))
        self._sample(row, selection, gold_sets, kept)
        return selection, score(selection, gold_sets, red=red, gamma=self.gamma, mode=self.mode), kept

    def _log(self, completions: Completions, found: Sequence[tuple[Selection, Score | None, float]]) -> None:
        valid = [(scored, kept) for selection, scored, kept in found if selection.valid and scored is not None]
        kinds = Counter(selection.error for selection, _, _ in found)
        parts = {
            "coverage": _mean([scored.coverage for scored, _ in valid]),
            "size": _mean([float(scored.size) for scored, _ in valid]),
            "over_select": _mean([float(scored.over) for scored, _ in valid]),
            "kept_tokens": _mean([kept for _, kept in valid]),
            "invalid": 1.0 - kinds[None] / max(1, len(found)),
            "stage": _mean([float(index) for index in completions.columns["stage"]]),
            **{f"invalid/{kind}": kinds[kind] / max(1, len(found)) for kind in MALFORMED},
        }
        for name, value in parts.items():
            completions.log(PREFIX + name, value)

    def _sample(self, row: Mapping[str, Any], selection: Selection, gold_sets: list[list[str]], kept: float) -> None:
        qid = row["qid"]
        if row.get("role") != "eval" or (qid not in self.samples and len(self.samples) == SAMPLES):
            return
        titles = dict(zip(row["pool_ids"], row["pool_titles"], strict=True))
        missed = {name: "not in the pool" for gold in gold_sets[:1] for name in gold if name not in titles}
        self.samples[qid] = {
            "question": row["question"],
            "stage": self.stages[row["stage"]].name,
            "chosen": _listed(selection.ids, titles) if selection.valid else f"malformed: {selection.error}",
            "evidence": _listed(gold_sets[0], titles | missed) if gold_sets else "unknown",
            "tokens kept": f"{100 * kept:.0f} %",
            "rationale": _short(selection.rationale, 200),
        }


def _listed(ids: Sequence[str], titles: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {_short(titles[name], 40)}" for name in sorted(ids, key=list(titles).index)) or "none"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _mean(values: Sequence[float]) -> float:
    """0 for none: every process must log the same names, whatever its rows are."""
    return sum(values) / len(values) if values else 0.0
