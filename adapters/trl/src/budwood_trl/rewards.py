"""Completion rewards as TRL's reward functions, and who decides their weights.

One column a reward, named ``plugin.name``. To a reward term a completion is an episode of one step, whose infos are the
completion rewards by those names; a term that only reads one of them takes its column over, so that whoever combines terms
weighs that reward.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from budwood.api import (
    BindingError,
    CompletionReward,
    Completions,
    ConfigError,
    Contributed,
    Contributions,
    RewardTerm,
    StepBatch,
    TermColumn,
    WeightVector,
    blamed,
    misfit,
)
from budwood_trl.config import OWN
from budwood_trl.families import unknown

NOT_COLUMNS = {"trainer_state", "log_extra", "log_metric", "environments"}

Rewards = list[float | None]
Board = dict[str, Rewards]
"""What each completion reward gave the batch that is being scored, by its own name."""


class RewardFunction:
    """What TRL calls once a batch: keywords in, B numbers or None out. Its ``__name__`` names the metrics."""

    def __init__(self, item: Contributed[CompletionReward], column: str, board: Board) -> None:
        self.item, self.board = item, board
        self.__name__ = column

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **others: Any,
    ) -> Rewards:
        batch = Completions(
            prompts=prompts,
            texts=[text_of(completion) for completion in completions],
            ids=completion_ids,
            columns={name: values for name, values in others.items() if name not in NOT_COLUMNS},
            step=others["trainer_state"].global_step,
            log=self._logging(others["log_metric"]),
        )
        with blamed(self.item, f"completion reward {self.item.value.name}"):
            rewards = [None if reward is None else float(reward) for reward in self.item.value.fn(batch)]
        checked(self.item, self.__name__, rewards, batch.texts)
        self.board[f"{self.item.plugin}.{self.item.value.name}"] = rewards
        return rewards

    def _logging(self, log_metric: Callable[[str, float], None]) -> Callable[[str, float], None]:
        prefix = f"{self.item.plugin}/"
        return lambda name, value: log_metric(name if name.startswith(prefix) else prefix + name, float(value))


class OwnFunction:
    """A reward function of TRL's own, as it is."""

    def __init__(self, name: str, column: str, board: Board) -> None:
        import trl.rewards

        self.function: Callable[..., Rewards] = getattr(trl.rewards, name)
        self.name, self.board = f"trl.{name}", board
        self.__name__ = column

    def __call__(self, **given: Any) -> Rewards:
        try:
            self.board[self.name] = self.function(**given)
        except ImportError as error:
            raise ConfigError(f"{self.name} needs a package: {error}", where="trainer.rewards") from error
        return self.board[self.name]


class TermFunction:
    """A reward term that computes something from the completion rewards; called after all of them.

    ``width``: how many completions a batch of the training holds, and so every batch that the term is shown.
    """

    def __init__(self, item: Contributed[RewardTerm], board: Board, width: int) -> None:
        self.item, self.board, self._width = item, board, width
        self.__name__ = f"{item.plugin}.{item.value.name}"

    def __call__(self, completions: Sequence[Any], **others: Any) -> Rewards:
        count = len(completions)
        rewards: Rewards = []
        for first in range(0, count, self._width):
            # A term may hold a state for each of so many environments: batches of an evaluation come in that width too.
            rows = [min(row, count - 1) for row in range(first, first + self._width)]
            with nullcontext() if first + self._width <= count else untouched([self.item]):  # no state from padding
                rewards += self._values(step_batch(self.board, rows))[: count - first]
        checked(self.item, self.__name__, rewards, [text_of(completion) for completion in completions])
        return rewards

    def _values(self, batch: StepBatch) -> Rewards:
        term = self.item.value
        with blamed(self.item, f"reward term {term.name}"):
            values = batch.info(str(term.info_key)) if term.fn is None else np.asarray(term.fn(batch), dtype=np.float64)
            return [float(value) for value in values]


def batch_width(args: Any) -> int:
    """How many completions a training of one process scores at once, from TRL's configuration."""
    return int(args.per_device_train_batch_size * args.steps_per_generation)


@contextmanager
def untouched(items: Sequence[Contributed[Any]]) -> Iterator[None]:
    """What rewards and terms remember is afterwards as it was."""
    kept = [item for item in items if item.value.state is not None]
    before = []
    for item in kept:
        with blamed(item, "state_dict"):
            before.append(copy.deepcopy(item.value.state.state_dict()))
    try:
        yield
    finally:
        for item, state in zip(kept, before, strict=True):
            with blamed(item, "load_state_dict"):
                item.value.state.load_state_dict(state)


def step_batch(board: Board, rows: Sequence[int], first: int = 0) -> StepBatch:
    """These rows of ``board`` as the only steps of B episodes; ``obs`` (B, 1) are their numbers, and there are no actions.

    A reward that does not apply to a completion is NaN in its infos.
    """
    batch, count = StepBatch(), len(rows)
    batch.obs = batch.next_obs = first + np.array(rows, dtype=np.float64)[:, None]
    batch.actions, batch.rewards = np.zeros((count, 0)), np.zeros(count)
    batch.dones, batch.timeouts = np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
    batch.infos = [
        {"env_index": first + row, **{name: math.nan if r[row] is None else r[row] for name, r in board.items()}}
        for row in rows
    ]
    return batch


def checked(item: Contributed[Any], name: str, rewards: Rewards, texts: Sequence[str]) -> None:
    if len(rewards) != len(texts):
        raise misfit(item, f"{name} gave {len(rewards)} rewards for {len(texts)} completions")
    for row, reward in enumerate(rewards):
        if reward is not None and not math.isfinite(reward):
            raise misfit(
                item, f"{name} gave {reward} for completion {row}, {texts[row]!r:.200}", "Give None where none applies"
            )


def text_of(completion: Any) -> str:
    """A completion as text: itself, or what the messages of a conversation say."""
    if isinstance(completion, str):
        return completion
    return "".join(_content(message.get("content")) for message in completion)


def _content(content: Any) -> str:
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


@dataclass(frozen=True)
class Columns:
    """``functions`` in the order of TRL's columns, ``columns`` their names and declared weights."""

    functions: list[Callable[..., Any]]
    columns: list[TermColumn]
    combination: Contributed[Any] | None
    board: Board

    @property
    def weights(self) -> list[float]:
        return [column.weight for column in self.columns]

    @property
    def contributed(self) -> list[Contributed[Any]]:
        """The plugins' rewards and terms behind the functions."""
        return [made.item for made in self.functions if isinstance(made, (RewardFunction, TermFunction))]

    def follow(self, native: Any) -> WeightVector | None:
        """The combination's weights copied into the trainer's own vector; None without a combination."""
        if self.combination is None:
            return None

        def write(weights: np.ndarray[Any, Any]) -> None:
            native.reward_weights.copy_(torch.as_tensor(weights, dtype=torch.float32))

        with blamed(self.combination, "reward combination"):
            return WeightVector(self.combination.value, self.columns, write)


def columns_of(contributions: Contributions, own: Mapping[str, float], trainer: str, width: int) -> Columns:
    """Every reward of a run: TRL's own that the configuration names, then the plugins' in YAML order, then terms of them.

    ``width``: :func:`batch_width` of the trainer's configuration.

    :raises ConfigError: there is nothing to learn from.
    """
    board: Board = {}
    functions: list[Callable[..., Any]] = []
    columns: list[TermColumn] = []
    keys = [term.value.info_key for term in contributions.reward_terms]
    takers = {
        k: t for k, t in zip(keys, contributions.reward_terms, strict=True) if k is not None and keys.count(k) == 1
    }

    def add(name: str, weight: float, make: Callable[[str], Callable[..., Any]]) -> None:
        term = takers.pop(name, None)
        column = name if term is None else f"{term.plugin}.{term.value.name}"
        functions.append(make(column))
        columns.append(TermColumn(column, weight if term is None else term.value.weight))
        taken.extend([] if term is None else [term])

    taken: list[Contributed[RewardTerm]] = []
    for name, weight in own.items():
        add(f"trl.{name}", weight, lambda column, name=name: OwnFunction(name, column, board))  # type: ignore[misc]
    for item in contributions.completion_rewards:
        key = f"{item.plugin}.{item.value.name}"
        add(key, item.value.weight, lambda column, item=item: RewardFunction(item, column, board))  # type: ignore[misc]
    known = [
        *(f"trl.{name}" for name in own),
        *(f"{i.plugin}.{i.value.name}" for i in contributions.completion_rewards),
    ]
    if not functions:
        raise ConfigError(
            f"{trainer} has no reward to learn from",
            where="plugins",
            do=f"Activate a plugin with completion_rewards, or name one of TRL's own under trainer.rewards: {', '.join(OWN)}",
        )
    for term in contributions.reward_terms:
        if not any(term is other for other in taken):
            check_source(term, known)
            functions.append(TermFunction(term, board, width))
            columns.append(TermColumn(f"{term.plugin}.{term.value.name}", term.value.weight))
    return Columns(functions, columns, contributions.reward_combination, board)


def check_source(term: Contributed[RewardTerm], known: Sequence[str]) -> None:
    """:raises BindingError: the term reads a completion reward that nobody gives."""
    key = term.value.info_key
    if key is not None and key not in known:
        raise BindingError(
            f"reward term {term.value.name} reads the completion reward {unknown(key, known)}, and there is none of that "
            f"name; there are {', '.join(known)}",
            where=f"plugins.{term.plugin}",
            who=term.who,
            do="A completion reward is named plugin.name",
        )
