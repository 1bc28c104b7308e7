"""Reward terms by name: what packs declare, and how the names of a configuration find them.

A term is a batched signal, (n,) numbers a vector step. Penalties are non-positive by themselves and weights positive, so
no search can turn a penalty into a reward. A :class:`Pack` belongs to an environment id; packs are collected from every
active plugin through ``components("reward_shaping.terms")``, this one's own included.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from budwood.api import Array, ConfigError, Contributed, ContributionError, PluginError, RewardTerm, StepBatch
from budwood_reward_shaping.config import CriterionConfig, InlineTerm

KIND = "reward_shaping.terms"
ANY = "*"
"""Key of a pack that fits every environment."""

Sign = Literal["+", "-"]
Signal = Callable[[StepBatch], Array]


class InfoReader:
    """``factor`` times an info key. ``keys`` are the spellings of different simulators; the first batch decides."""

    def __init__(self, keys: Sequence[str], factor: float = 1.0) -> None:
        self.keys, self.factor = tuple(keys), factor
        self._key: str | None = None

    def __call__(self, batch: StepBatch) -> Array:
        if self._key is None:
            self._key = next((key for key in self.keys if _gives(batch, key)), self.keys[0])
        column = batch.info(self._key)
        return column if self.factor == 1.0 else self.factor * column


def _gives(batch: StepBatch, key: str) -> bool:
    """Asked of the batch itself: where infos are arrays, ``infos`` holds none of them."""
    try:
        batch.info(key)
    except ContributionError:
        return False
    return True


@dataclass(frozen=True)
class InfoTerm:
    """An info key of the environment; ``aliases`` are its other spellings, e.g. EnvPool's."""

    name: str
    key: str
    sign: Sign | None = None
    aliases: tuple[str, ...] = ()
    factor: float = 1.0

    @property
    def signal(self) -> Signal:
        return InfoReader((self.key, *self.aliases), self.factor)

    def contribution(self) -> RewardTerm:
        if self.aliases or self.factor != 1.0:
            return RewardTerm(self.name, fn=self.signal)
        return RewardTerm(self.name, info_key=self.key)


@dataclass(frozen=True)
class ObsTerm:
    """``transform`` of one component of the observation that followed the action."""

    name: str
    index: int
    transform: Callable[[Array], Array] | None = None
    sign: Sign | None = None

    def signal(self, batch: StepBatch) -> Array:
        component: Array = np.asarray(batch.next_obs[:, self.index])
        return component if self.transform is None else self.transform(component)

    def contribution(self) -> RewardTerm:
        return RewardTerm(self.name, fn=self.signal)


@dataclass(frozen=True)
class BatchTerm:
    """Any function of a :class:`~budwood.api.StepBatch` to (n,) numbers."""

    name: str
    fn: Signal
    sign: Sign | None = None

    @property
    def signal(self) -> Signal:
        return self.fn

    def contribution(self) -> RewardTerm:
        return RewardTerm(self.name, fn=self.fn)


@dataclass(frozen=True)
class NativeTerm:
    """The environment's own reward as a term among others; it is column 0 already, so nothing is contributed."""

    name: str = "native"
    sign: Sign | None = None

    def signal(self, batch: StepBatch) -> Array:
        return batch.rewards

    def contribution(self) -> None:
        return None


Term = InfoTerm | ObsTerm | BatchTerm | NativeTerm


@dataclass(frozen=True)
class Pack:
    """Terms for an environment, signals that only criteria read (an info key, or a function of the step), and criteria that a
    configuration may name."""

    terms: Sequence[Term] = ()
    signals: Mapping[str, str | Signal] = field(default_factory=dict)
    criteria: Sequence[CriterionConfig] = ()


def action_sq(batch: StepBatch) -> Array:
    """Squared length of the action."""
    actions = np.asarray(batch.actions, dtype=np.float64).reshape(len(batch.dones), -1)
    squares: Array = np.square(actions).sum(axis=1)
    return squares


def one(batch: StepBatch) -> Array:
    return np.ones(len(batch.dones))


GENERAL = Pack((NativeTerm(),), {"action_sq": action_sq, "step": one})
"""Known for every environment."""


class Registry:
    """All terms, signals and criteria for one environment."""

    def __init__(self, env_id: str | None, offered: Sequence[Contributed[Mapping[str, Any]]]) -> None:
        self.env_id = None if env_id is None else env_id.rpartition(":")[2]
        self.terms: dict[str, Term] = {}
        self.signals: dict[str, Signal] = {}
        self.criteria: dict[str, CriterionConfig] = {}
        self._owners: dict[str, str] = {}
        self._elsewhere: dict[str, list[str]] = {}
        self._add(GENERAL, "budwood-reward-shaping")
        for item in offered:
            for env, pack in item.value.items():
                if env in (self.env_id, ANY):
                    self._add(pack, item.who)
                elif env != ANY:
                    self._elsewhere.setdefault(env, []).extend(term.name for term in pack.terms)

    def _add(self, pack: Pack, who: str) -> None:
        for term in pack.terms:
            self._own(term.name, who)
            self.terms[term.name] = term
        for name, signal in pack.signals.items():
            self._own(name, who)
            self.signals[name] = InfoReader((signal,)) if isinstance(signal, str) else signal
        for criterion in getattr(pack, "criteria", ()):
            self._own(f"criterion {criterion.name}", who)
            self.criteria[criterion.name] = criterion

    def _own(self, name: str, who: str) -> None:
        if name in self._owners:
            raise PluginError(
                f"two packs define {name!r} for {self.env_id}: {self._owners[name]} and {who}",
                where="plugins.reward_shaping.terms",
                do="One of them must choose another name, or be left out of the run",
            )
        self._owners[name] = who

    def term(self, wanted: str | InlineTerm) -> Term:
        """The term of that name, or the one written out in the configuration."""
        if isinstance(wanted, InlineTerm):
            return InfoTerm(wanted.name, wanted.info, wanted.sign, factor=wanted.factor)
        if wanted in self.terms:
            return self.terms[wanted]
        near = difflib.get_close_matches(wanted, self.terms, n=1)
        raise ConfigError(
            f"no term {wanted!r} is known for {self.env_id or 'an environment that is not named yet'}; "
            f"known are {', '.join(sorted(self.terms))}",
            where="plugins.reward_shaping.terms",
            do=f"Did you mean {near[0]!r}?" if near else self._advice(),
        )

    def _advice(self) -> str:
        inline = "write it out as {name: NAME, info: INFO_KEY}"
        packs = ", ".join(sorted(self._elsewhere))
        return f"Either {inline}, or set pack to one of {packs}" if self.env_id is None else f"You may {inline}"

    def criterion(self, wanted: str | CriterionConfig) -> CriterionConfig:
        """The criterion of that name, or the one written out in the configuration."""
        if isinstance(wanted, CriterionConfig):
            return wanted
        if wanted in self.criteria:
            return self.criteria[wanted]
        near = difflib.get_close_matches(wanted, self.criteria, n=1)
        raise ConfigError(
            f"no criterion {wanted!r} is known for {self.env_id or 'an environment that is not named yet'}; "
            f"known are {', '.join(sorted(self.criteria)) or 'none'}",
            where="plugins.reward_shaping.criteria",
            do=f"Did you mean {near[0]!r}?" if near else "Write it out: {name, source, stat, op, threshold}",
        )

    def source(self, name: str, inline: Mapping[str, Term]) -> Signal:
        """What a criterion reads: a signal, a term (of the pack or written out), else the info key of that name."""
        if name in self.signals:
            return self.signals[name]
        term = inline.get(name) or self.terms.get(name)
        return term.signal if term is not None else InfoReader((name,))


class SignCheck:
    """Holds terms to their declared signs over the first samples: a penalty that pays would be maximised."""

    SAMPLES = 1_000

    def __init__(self, terms: Sequence[Term], columns: Sequence[int]) -> None:
        self.signed = [(t.name, t.sign, c) for t, c in zip(terms, columns, strict=True) if t.sign is not None]
        self.left = self.SAMPLES if self.signed else 0

    def __call__(self, matrix: Array) -> None:
        """(N, K) terms of which some are new."""
        self.left -= len(matrix)
        for name, sign, column in self.signed:
            values = matrix[:, column]
            wrong = values < 0 if sign == "+" else values > 0
            if wrong.any():
                raise PluginError(
                    f"term {name!r} is declared {'non-negative' if sign == '+' else 'non-positive'} and was "
                    f"{float(values[wrong][0]):g}",
                    where="plugins.reward_shaping.terms",
                    do="Correct the term or its sign: weights are positive, so a penalty must be non-positive by itself",
                )
