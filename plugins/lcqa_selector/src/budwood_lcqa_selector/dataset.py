"""Rows as a trainer reads them: rendered when they are fetched, for the stage of that moment, which they then carry."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from budwood.api import ConfigError
from budwood_lcqa_selector.prompts import Conversation, PickerPrompt, labels
from budwood_lcqa_selector.records import Passage, PoolRow
from budwood_lcqa_selector.stages import StageController
from budwood_models import without_control_tokens

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Presented:
    """A pool as a prompt shows it: ``passages`` in the order shown, under ``labels`` (p1, p2, ...) that say nothing."""

    passages: tuple[Passage, ...]
    labels: tuple[str, ...]

    def relabelled(self, ids: Iterable[str]) -> list[str]:
        """Ids -> labels; an id that retrieval left out gets a label that no answer can name, so it stays uncovered."""
        label = {passage.id: name for passage, name in zip(self.passages, self.labels, strict=True)}
        return [label.get(id_, f"absent:{id_}") for id_ in ids]

    def originals(self, chosen: Iterable[str]) -> list[str]:
        """Labels -> ids of the pool."""
        original = {name: passage.id for passage, name in zip(self.passages, self.labels, strict=True)}
        return [original[name] for name in chosen]


def present(passages: Sequence[Passage], shuffled_by: str | None = None) -> Presented:
    """``shuffled_by`` names a permutation, always the same for the same name; None keeps the order.

    A pool in the order of its retriever teaches a policy to like low ids; all completions of a group see one permutation.
    """
    order = list(passages)
    if shuffled_by is not None:
        random.Random(shuffled_by).shuffle(order)
    return Presented(tuple(order), tuple(labels(len(order))))


class StageRows:
    """The transform of the dataset: JSON rows -> the columns of a trainer.

    ``prompt`` conversation, ``gold_sets`` JSON of lists of labels, ``pool_ids`` labels, ``pool_tokens`` tokens of each,
    ``pool_titles`` and ``question`` to show to people, ``qid``, ``stage`` index of the stage that the prompt was written
    for, ``role`` train or eval. With a ``tokenizer`` no text of a row holds one of its control tokens.
    """

    def __init__(
        self, controller: StageController, prompt: PickerPrompt, seed: int, role: str, tokenizer: Any | None = None
    ) -> None:
        self.controller, self.prompt, self.seed, self.role = controller, prompt, seed, role
        self.tokenizer = tokenizer

    def __deepcopy__(self, memo: object) -> StageRows:
        return self  # a copy of the dataset must go on seeing the stage of the run

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
        _refuse_a_copy()
        rows = [self._row(PoolRow.model_validate_json(text)) for text in batch["prompt"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _row(self, row: PoolRow) -> dict[str, Any]:
        index = self.controller.index
        shown = present(row.passages, f"{self.seed} {index} {row.qid}")
        return {
            "prompt": self._prompt(row.question, shown),
            "gold_sets": json.dumps([shown.relabelled(gold) for gold in row.gold_sets]),
            "pool_ids": list(shown.labels),
            "pool_tokens": [passage.n_tokens for passage in shown.passages],
            "pool_titles": [passage.title or " ".join(passage.text.split(None, 5)[:5]) for passage in shown.passages],
            "question": row.question,
            "qid": row.qid,
            "stage": index,
            "role": self.role,
        }

    def _prompt(self, question: str, shown: Presented) -> Conversation:
        asked = self.prompt.render(question, shown.passages, shown.labels, self.controller.stage.prompt)
        if self.tokenizer is None:
            return asked
        return [{**said, "content": without_control_tokens(said["content"], self.tokenizer)} for said in asked]


def _refuse_a_copy() -> None:
    """A script's loader processes are seen here at the latest."""
    torch = sys.modules.get("torch")
    worker = torch.utils.data.get_worker_info() if torch is not None else None
    if worker is not None:
        refuse_workers(worker.num_workers, "dataloader_num_workers")


def refuse_workers(workers: int, where: str) -> None:
    if workers:
        raise ConfigError(
            f"{workers} loader processes would render prompts from copies of the stage that never switch",
            where=where,
            do="Use 0: rendering a row takes less than a millisecond",
        )


def stage_dataset(
    rows: Iterable[PoolRow],
    controller: StageController,
    prompt: PickerPrompt | None = None,
    *,
    seed: int = 0,
    role: str = "train",
    tokenizer: Any | None = None,
) -> Dataset:
    """A ``datasets.Dataset`` that follows ``controller``. Worker processes would follow a copy of it: load with none.

    ``tokenizer``: the policy's, whose control tokens in passages and questions become ordinary text.
    """
    from datasets import Dataset

    # Trainers look for a column of this name before they read a row; what it holds becomes the prompt.
    stored = Dataset.from_dict({"prompt": [row.model_dump_json() for row in rows]})
    return stored.with_transform(StageRows(controller, prompt or PickerPrompt(), seed, role, tokenizer))
