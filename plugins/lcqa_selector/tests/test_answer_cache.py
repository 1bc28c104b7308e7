"""Answers on disk: read back as written, and what is said of a file that cannot be used."""

from __future__ import annotations

import sqlite3

import pytest

from budwood.api import DiskFullError
from budwood_lcqa_selector.answer_cache import AnswerCache, Stored
from budwood_lcqa_selector.records import DataError

ANSWER = Stored("Rome 🏛 \x00", True, '{"verdict": "correct"}', 1, 2, 3, 0.25)


def test_answers_read_back_as_they_were(tmp_path):
    many = {bytes([i % 256, i // 256]): ANSWER for i in range(1200)}
    with AnswerCache(tmp_path / "deep" / "answers.sqlite") as cache:
        cache.put(many)
        assert cache.get([*many, b"unknown"]) == many
        cache.put({b"x": Stored("\ud83d", False, "", 0, 0, 0, 0.0)})
        assert cache.get([b"x"])[b"x"].answer == "?"
        assert cache.get([]) == {}


def test_a_file_that_is_no_store_is_named(tmp_path):
    path = tmp_path / "answers.sqlite"
    path.write_text("something else entirely, and long enough to be looked at" * 100)
    with pytest.raises(DataError, match=r"answer cache .*answers.sqlite: this file cannot be used"):
        AnswerCache(path)


def test_a_full_disk_is_said_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "answers.sqlite"
    with AnswerCache(path) as cache:
        cache.put({b"a": ANSWER})
        pages = cache._db.execute("PRAGMA page_count").fetchone()[0]
        cache._db.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(DiskFullError, match="all answers so far are kept"):
            cache.put({b"b": Stored("x" * 100_000, True, "", 0, 0, 0, 0.0)})
        assert list(cache.get([b"a", b"b"])) == [b"a"]


def test_a_second_writer_waits_and_is_told(tmp_path):
    path = tmp_path / "answers.sqlite"
    with AnswerCache(path) as cache:
        cache._db.execute("PRAGMA busy_timeout=50")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DataError, match="another process"):
            cache.put({b"a": ANSWER})
        other.execute("COMMIT")
        cache.put({b"a": ANSWER})
        assert other.execute("SELECT COUNT(*) FROM answers").fetchone() == (1,)
        other.close()
