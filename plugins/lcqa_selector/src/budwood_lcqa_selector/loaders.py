"""Data sets in their own formats, read as rows whose passages are the whole document and whose gold is the
annotation.

Nothing is fetched: a loader is given a local file. Which passages an annotation names is taken as it is; that it
suffices or is minimal is nobody's promise, which is what mining is for.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from budwood_lcqa_selector.records import DataError, Passage, PoolRow, bad_line, check_text, read_jsonl, row_of
from budwood_lcqa_selector.retrieval import BM25, top

Raw = Mapping[str, Any]
Loader = Callable[[Path, list[int]], Iterator[PoolRow]]
"""(file, numbers of the records left out, which it adds to) -> rows"""
NEGATIVES = 19


class _LeftOut(Exception):  # noqa: N818 - a record that is no question, not an error
    """Why."""


def load(path: Path, kind: str = "rows", left_out: list[int] | None = None) -> Iterator[PoolRow]:
    """Rows of ``path``, one at a time. Records that are left out are warned of, and their numbers added to ``left_out``.

    :raises DataError: for an unknown ``kind``, and for a record that lacks a field, by number."""
    if kind not in LOADERS:
        raise DataError(f"no data format {kind!r}", do=f"Choose one of {', '.join(LOADERS)}")
    return LOADERS[kind](path, [] if left_out is None else left_out)


def _rows(path: Path, _: list[int]) -> Iterator[PoolRow]:
    for number, values in read_jsonl(path):
        yield row_of(values, path, number)


def _each(read: Callable[[Raw], Iterator[dict[str, Any]]]) -> Loader:
    """A loader that turns each record of a .jsonl file, or of the list in a .json file, into rows."""

    def loader(path: Path, left_out: list[int]) -> Iterator[PoolRow]:
        for number, raw in read_jsonl(path) if path.suffix == ".jsonl" else _listed(path):
            check_text(raw, path, number)
            try:
                found = list(read(raw))
            except _LeftOut as why:
                logging.getLogger(__name__).warning("%s, line %d is left out: %s", path, number, why)
                left_out.append(number)
                continue
            except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
                said = f"it has no field {error}" if isinstance(error, KeyError) else str(error)
                raise bad_line(path, number, f"this record is not of the expected format: {said}") from error
            for values in found:
                yield row_of(values, path, number)

    return loader


def _listed(path: Path) -> Iterator[tuple[int, Raw]]:
    if not path.is_file():
        raise DataError("no such file", where=str(path), do="Check the path")
    try:
        records = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"this file is no JSON: {error}", where=str(path), do="Correct it") from error
    if not isinstance(records, list):
        raise DataError("a list of records was expected", where=str(path), do="Choose another data format")
    return enumerate(records, start=1)


def _shipped(raw: Raw) -> Iterator[dict[str, Any]]:
    """``passages`` with text or sentences, and ``gold_ids``; records whose gold is marked as uncertain are left out."""
    if not raw.get("gold_certain", True):
        raise _LeftOut("its gold is marked as uncertain")
    passages = [
        {
            "id": passage["id"],
            "title": passage["title"],
            "text": passage["text"] if "text" in passage else "".join(passage["sentences"]),
        }
        for passage in raw["passages"]
    ]
    yield _row(raw["qid"], raw["question"], raw["answers"], passages, raw["gold_ids"])


def _hotpotqa(raw: Raw) -> Iterator[dict[str, Any]]:
    """HotpotQA and 2WikiMultihopQA: ``context`` is a list of (title, sentences), supporting facts name titles.
    A record that names one which is not in its context is left out: the rest would be half the gold."""
    passages = [
        {"id": f"p{i}", "title": title, "text": " ".join(sentence.strip() for sentence in sentences)}
        for i, (title, sentences) in enumerate(raw["context"], start=1)
    ]
    titles = {title for title, _ in raw["supporting_facts"]}
    if missing := sorted(titles - {passage["title"] for passage in passages}):
        raise _LeftOut(f"its context has no passage {missing[0]!r}, which its evidence names")
    gold = [passage["id"] for passage in passages if passage["title"] in titles]
    yield _row(raw["_id"], raw["question"], [raw["answer"]], passages, gold)


def _musique(raw: Raw) -> Iterator[dict[str, Any]]:
    passages = [
        {"id": f"p{paragraph['idx']}", "title": paragraph["title"], "text": paragraph["paragraph_text"]}
        for paragraph in raw["paragraphs"]
    ]
    gold = [f"p{paragraph['idx']}" for paragraph in raw["paragraphs"] if paragraph["is_supporting"]]
    answers = [raw["answer"], *raw.get("answer_aliases", [])]
    yield _row(raw["id"], raw["question"], answers, passages, gold)


def _longbench(raw: Raw) -> Iterator[dict[str, Any]]:
    """One document a question, no annotation; cut it into chunks before retrieval."""
    passages = [{"id": "d", "text": raw["context"]}]
    yield _row(raw["_id"], raw["input"], raw["answers"], passages, [])


_BETWEEN_TURNS = re.compile(r"[;,\s]+")


def _locomo(raw: Raw) -> Iterator[dict[str, Any]]:
    """A conversation and its questions: one passage a turn, dated by its session. Questions without answer get id
    ``..._abs``. One evidence string may name several turns."""
    talk = raw["conversation"]
    sessions = sorted((int(key[8:]), key) for key in talk if key.startswith("session_") and key[8:].isdigit())
    passages = [
        {
            "id": turn["dia_id"],
            "title": talk.get(f"{key}_date_time", ""),
            "text": f"{turn['speaker']}: {turn['text']}",
        }
        for _, key in sessions
        for turn in talk[key]
    ]
    known = {passage["id"] for passage in passages}
    for i, item in enumerate(raw["qa"]):
        name = f"{raw['sample_id']}-{i}"
        named = [turn for turns in item.get("evidence", []) for turn in _BETWEEN_TURNS.split(turns) if turn]
        gold = [turn for turn in dict.fromkeys(named) if turn in known]
        if "answer" in item:
            yield _row(name, item["question"], [str(item["answer"])], passages, gold)
        else:
            yield _row(f"{name}_abs", item["question"], ["not mentioned in the conversation"], passages, [])


def _row(
    qid: str, question: str, answers: Sequence[str], passages: Sequence[Raw], gold: Sequence[str]
) -> dict[str, Any]:
    known = {passage["id"] for passage in passages}
    if missing := [name for name in gold if name not in known]:
        raise ValueError(f"its evidence names {missing[0]!r}, which is no passage of it")
    return {
        "qid": qid,
        "question": question,
        "answers": tuple(answers),
        "passages": tuple(dict(passage) for passage in passages),
        "gold_sets": (tuple(gold),) if gold else (),
        "gold_origin": "annotated",
    }


def _nq_open(path: Path, _: list[int]) -> Iterator[PoolRow]:
    """Questions with one gold paragraph each; the pool is that paragraph and the 19 of other questions that BM25
    scores highest for the question (hard negatives), in BM25's order."""
    records = list(read_jsonl(path))
    try:
        passages = [
            Passage(id=f"p{i}", title=raw["gold"]["title"], text=raw["gold"]["text"])
            for i, (_, raw) in enumerate(records)
        ]
    except (KeyError, TypeError) as error:
        raise DataError(f"records need a 'gold' paragraph with title and text: {error}", where=str(path)) from error
    index = BM25([passage.titled for passage in passages])
    for i, (number, raw) in enumerate(records):
        best = [int(j) for j in top(index.scores(raw["question"]), NEGATIVES + 1)]
        if i not in best:
            best[-1] = i
        values = {
            "qid": raw["qid"],
            "question": raw["question"],
            "answers": raw["answers"],
            "passages": tuple(passages[j] for j in best),
            "gold_sets": ((f"p{i}",),),
        }
        yield row_of(values, path, number)


LOADERS: Mapping[str, Loader] = {
    "rows": _rows,
    "shipped": _each(_shipped),
    "nq-open": _nq_open,
    "hotpotqa": _each(_hotpotqa),
    "2wiki": _each(_hotpotqa),
    "musique": _each(_musique),
    "locomo": _each(_locomo),
    "longbench": _each(_longbench),
}
"""``rows``: what ``budwood lcqa`` writes itself; ``shipped``: passages with ``gold_ids``; the others as published."""
