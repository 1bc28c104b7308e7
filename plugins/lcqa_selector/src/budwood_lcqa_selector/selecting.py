"""Picking for a question that somebody asks now: one call, chosen passages, and the context they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from budwood.api import BudwoodError
from budwood_lcqa_selector.dataset import present
from budwood_lcqa_selector.head import SelectorHead
from budwood_lcqa_selector.parsing import Selection, parse
from budwood_lcqa_selector.prompts import TIGHT, PickerPrompt
from budwood_lcqa_selector.records import Passage, PoolRow
from budwood_lcqa_selector.retrieval import BM25, top

if TYPE_CHECKING:
    from budwood_lcqa_selector.config import SelectorConfig
    from budwood_models import Generator

HEAD = "head:"
GivenPassage = Passage | Mapping[str, Any] | str


class Picker(Protocol):
    """Chooses among the passages of a row; ``ids`` of the selection are those of the row."""

    def choose(self, row: PoolRow) -> Selection: ...


@dataclass(frozen=True)
class PromptedPicker:
    """A language model that is asked. ``think``: it may write before its JSON object, as untrained models like to."""

    generator: Generator
    prompt: PickerPrompt = field(default_factory=PickerPrompt)
    stage: str = TIGHT
    think: bool = True
    max_tokens: int = 256

    def choose(self, row: PoolRow) -> Selection:
        shown = present(row.passages)
        asked = self.prompt.render(row.question, shown.passages, shown.labels, self.stage)
        (reply,) = self.generator.generate([asked], max_tokens=self.max_tokens)
        found = parse(reply.text, shown.labels, think=self.think)
        if not found.valid:
            return Selection((), error="truncated" if reply.truncated else found.error)
        return Selection(tuple(shown.originals(found.ids)), found.rationale)


@dataclass(frozen=True)
class Picked:
    """``passages`` chosen, in the order given; ``context`` is their text. ``error``: the answer was malformed, see
    :data:`.parsing.Malformed`; then nothing is chosen. ``tokens`` of ``pool_tokens`` are kept, counted in words and
    punctuation."""

    ids: tuple[str, ...]
    rationale: str
    passages: tuple[Passage, ...]
    tokens: int
    pool_tokens: int
    error: str | None = None

    @property
    def context(self) -> str:
        return "\n\n".join(passage.titled for passage in self.passages)


def pick(
    question: str,
    passages: Sequence[GivenPassage],
    picker: Picker,
    *,
    candidates: int = 30,
    budget: int = 6_000,
) -> Picked:
    """Choose the passages that ``question`` needs.

    ``passages``: texts, mappings with ``text`` and perhaps ``title`` and ``id``, or :class:`Passage` objects.  At most
    ``candidates`` of them, and as many as fit into ``budget`` tokens, are shown to the picker: the ones that BM25 ranks
    first, in their own order.  Copies of a passage are shown once.  Without passages, nothing is asked.

    :raises BudwoodError: for a passage that is none, or an id that two passages share.
    """
    given = [_passage(item, number) for number, item in enumerate(passages, start=1)]
    whole = _row(question, given)
    shown = _row(question, shortlist(question, _distinct(given), candidates, budget))
    selection = picker.choose(shown) if shown.passages else Selection((), "there is no passage to choose from")
    chosen = tuple(shown.chosen(selection.ids))
    return Picked(
        ids=tuple(passage.id for passage in chosen),
        rationale=selection.rationale,
        passages=chosen,
        tokens=sum(passage.n_tokens for passage in chosen),
        pool_tokens=whole.n_tokens,
        error=selection.error,
    )


def shortlist(question: str, passages: Sequence[Passage], candidates: int, budget: int) -> list[Passage]:
    """What BM25 puts first, as far as ``budget`` tokens go, in the order of ``passages``; at least one passage."""
    if len(passages) <= candidates and sum(passage.n_tokens for passage in passages) <= budget:
        return list(passages)
    scores = BM25([passage.titled for passage in passages]).scores(question)
    kept: set[int] = set()
    left = budget
    for place in top(scores, candidates).tolist():
        if passages[place].n_tokens <= left or not kept:
            kept.add(place)
            left -= passages[place].n_tokens
    return [passage for place, passage in enumerate(passages) if place in kept]


def picker_named(
    name: str, key_env: str | None = None, max_tokens: int = 256, asked: SelectorConfig | None = None
) -> Picker:
    """``head:FILE``, an endpoint ``http(s)://host/v1#model``, else a language model to load.

    ``asked``: ask as in the last stage of this training. :raises BudwoodError: for a head with ``asked``, or none in FILE.
    """
    if name.startswith(HEAD):
        if asked is not None:
            raise BudwoodError("a selector head is asked nothing", where=name, do="Leave --config out")
        return SelectorHead.load(Path(name.removeprefix(HEAD)))
    from budwood_lcqa_selector.parts import generator_named

    generator = generator_named(name, key_env)
    if asked is None:
        return PromptedPicker(generator, max_tokens=max_tokens)
    return PromptedPicker(generator, asked.prompt, asked.stages[-1].prompt, asked.think, max_tokens)


def _passage(item: GivenPassage, number: int) -> Passage:
    if isinstance(item, Passage):
        return item
    values: Mapping[str, Any] = {"text": item} if isinstance(item, str) else item
    if not isinstance(values, Mapping) or not isinstance(values.get("text"), str):
        raise BudwoodError(
            f"passage {number} has no text", where="passages", do='Give a string, or a mapping with "text"'
        )
    named = values.get("id", f"p{number}")
    if not is_id(named):
        raise BudwoodError(
            f"passage {number} has the id {named!r}", where="passages", do="Give a string or an integer, or no id"
        )
    return Passage(id=str(named), title=str(values.get("title") or ""), text=values["text"])


def is_id(value: Any) -> bool:
    """Strings and integers; null would become the name of a passage."""
    return isinstance(value, str | int) and not isinstance(value, bool)


def _row(question: str, passages: Sequence[Passage]) -> PoolRow:
    try:
        return PoolRow(qid="asked", question=question, answers=(), passages=tuple(passages))
    except ValueError as error:
        twice = str(error).partition("Value error, ")[2].partition(" [")[0]
        raise BudwoodError(twice or str(error), where="passages", do="Give every passage an id of its own") from error


def _distinct(passages: Sequence[Passage]) -> list[Passage]:
    """The first of each copy, in their order."""
    first: dict[tuple[str, str], Passage] = {}
    for passage in passages:
        first.setdefault((passage.title, passage.text), passage)
    return list(first.values())
