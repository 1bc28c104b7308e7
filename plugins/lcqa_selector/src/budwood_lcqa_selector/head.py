"""A picker of a dozen weights: it picks passages one after the other, each in the light of those before, until it stops.

A stand-in for a language model where none can be trained: same rewards, same group-relative advantages, same stages, and
an answer in the same form. What a language model writes into its rationale, this one reads from what it has picked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy

from budwood.api import Array, BudwoodError
from budwood_lcqa_selector.head_features import PLAIN, REASONED, STOP_PLAIN, STOP_REASONED, Pools, Seen, pools
from budwood_lcqa_selector.parsing import Selection
from budwood_lcqa_selector.prompts import labels
from budwood_lcqa_selector.records import PoolRow

MOST = 10
"""Picks after which it stops anyway."""
ABOUT = "budwood_lcqa_selector.head"
"""Key of a file's metadata."""


@dataclass(frozen=True)
class Picks:
    """``order``: n tuples of places in the pool. ``score`` (n, w): gradient of the log-probability of all choices made."""

    order: list[tuple[int, ...]]
    score: Array


@dataclass
class SelectorHead:
    """Softmax over passages not yet picked and stopping, linear in the features; ``rationale`` off: blind to its picks."""

    weights: Array
    rationale: bool = True

    @classmethod
    def fresh(cls, rationale: bool = True) -> SelectorHead:
        """All weights 0: picks and stops alike, so it picks about half of a pool."""
        return cls(np.zeros(len(cls.names(rationale))), rationale)

    @staticmethod
    def names(rationale: bool) -> tuple[str, ...]:
        """What each weight weighs."""
        return (*PLAIN, *(REASONED if rationale else ()), *STOP_PLAIN, *(STOP_REASONED if rationale else ()))

    def _features(self, seen: Seen, picked: Array) -> Array:
        """(n, k) bool picks -> (n, k + 1, w) features of picking each passage, and of stopping."""
        n, k = picked.shape
        passages = [seen.of.plain, *([seen.features()] if self.rationale else [])]
        stop = [np.ones(n), picked.sum(axis=1), *([seen.covered_part()] if self.rationale else [])]
        found = np.zeros((n, k + 1, len(self.weights)))
        width = sum(part.shape[2] for part in passages)
        found[:, :k, :width] = np.concatenate(passages, axis=2)
        found[:, k, width:] = np.stack(stop, axis=1)
        return found

    def pick(self, of: Pools, rng: np.random.Generator | None = None) -> Picks:
        """Sampled picks, or the most likely ones without ``rng``."""
        n, k = of.real.shape
        seen, picked, going = Seen(of), np.zeros((n, k), dtype=bool), np.ones(n, dtype=bool)
        order: list[list[int]] = [[] for _ in range(n)]
        score = np.zeros((n, len(self.weights)))
        for _ in range(min(MOST, k)):
            features = self._features(seen, picked)
            logits = features @ self.weights
            logits[:, :k] = np.where(of.real & ~picked, logits[:, :k], -np.inf)
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            choice = (
                p.argmax(axis=1) if rng is None else (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=k)
            )
            mean = np.einsum("nk,nkw->nw", p, features)
            score += np.where(going[:, None], features[np.arange(n), choice] - mean, 0)
            going &= choice < k
            more = np.flatnonzero(going)
            if not len(more):
                break
            picked[more, choice[more]] = True
            seen.add(more, choice[more])
            for i in more:
                order[i].append(int(choice[i]))
        return Picks([tuple(places) for places in order], score)

    def choose(self, row: PoolRow) -> Selection:
        """The most likely pick from a pool."""
        if not row.passages:
            return Selection((), "there is no passage")
        (places,) = self.pick(pools([row])).order
        chosen = [row.passages[place] for place in places]
        return Selection(tuple(passage.id for passage in chosen), "; ".join(passage.title for passage in chosen))

    def save(self, path: Path) -> None:
        """A safetensors file of the weights, float64, whose metadata say in JSON what each weighs. It is whole or not there."""
        about = {"rationale": self.rationale, "weights": self.names(self.rationale)}
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".part")
        beside.write_bytes(safetensors.numpy.save({"weights": self.weights}, {ABOUT: json.dumps(about)}))
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> SelectorHead:
        """:raises BudwoodError: for a file that :meth:`save` did not write."""
        try:
            with safetensors.safe_open(path, "np") as file:
                about = json.loads((file.metadata() or {})[ABOUT])
                weights = file.get_tensor("weights")
            rationale = bool(about["rationale"])
            if tuple(about["weights"]) != cls.names(rationale):
                raise ValueError(f"its weights weigh {', '.join(about['weights'])}")
            if weights.shape != (len(about["weights"]),) or not np.isfinite(weights).all():
                raise ValueError("its weights are not one finite number each")
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise BudwoodError(
                f"this is no selector head: {type(error).__name__} {error}",
                where=str(path),
                do="Give a file that budwood lcqa train wrote",
            ) from error
        return cls(weights.astype(np.float64), rationale)


def answer(places: Sequence[int], row: PoolRow) -> str:
    """A pick as a picker writes it, ids being labels."""
    names = labels(len(row.passages))
    rationale = "; ".join(f"{names[place]} tells of {row.passages[place].title}" for place in places)
    return json.dumps({"rationale": rationale, "ids": [names[place] for place in places]})
