"""Replies on disk: what is asked again, what is not, and what a crash costs."""

from __future__ import annotations

import json
import sqlite3
import threading

import pytest

from budwood_models import Generator, LocalGenerator, ModelError, Recorded, Reply


def ask(text):
    return [{"role": "user", "content": text}]


class Counting:
    """Answers with the prompt's text, its copy's number in the call and the seed; fails at the n-th reply if told to."""

    def __init__(self, name="m", fail_at=None):
        self.identity = {"model": name}
        self.asked, self.fail_at = [], fail_at

    def stream(self, prompts, *, max_tokens, temperature=0.0, seed=0):
        from budwood_models.generation import copies

        numbers = copies(prompts)
        for i in reversed(range(len(prompts))):
            if len(self.asked) == self.fail_at:
                raise KeyboardInterrupt
            self.asked.append(prompts[i])
            text = f"{prompts[i][-1]['content']}/{numbers[i]}/{seed}"
            yield i, Reply(text, 1, 2, False, {"said": text})

    def generate(self, prompts, **options):
        replies = dict(self.stream(prompts, **options))
        return [replies[i] for i in range(len(prompts))]


def test_asked_once_and_then_read(tmp_path):
    inner = Counting()
    prompts = [ask("a"), ask("b"), ask("a")]
    with Recorded(inner, tmp_path / "replies.sqlite") as recorded:
        assert isinstance(recorded, Generator)
        first = recorded.generate(prompts, max_tokens=4)
        assert recorded.generate(prompts, max_tokens=4) == first
        assert len(recorded) == 2
    assert [reply.text for reply in first] == ["a/0/0", "b/0/0", "a/0/0"]
    assert len(inner.asked) == 2
    with Recorded(Counting("m"), tmp_path / "replies.sqlite", "replay") as replayed:
        again = replayed.generate(prompts, max_tokens=4)
    assert again == first
    assert again[0].raw == {"said": "a/0/0"}


def test_everything_that_may_change_a_reply_is_in_the_key(tmp_path):
    inner = Counting()
    with Recorded(inner, tmp_path / "r") as recorded:
        for options in ({"max_tokens": 4}, {"max_tokens": 5}, {"max_tokens": 4, "temperature": 1.0}):
            recorded.generate([ask("a")], **options)
        recorded.generate([ask("a")], max_tokens=4, temperature=1.0, seed=1)
        recorded.generate([[{"role": "system", "content": "a"}]], max_tokens=4)
        assert len(inner.asked) == 5
        recorded.generate([ask("a")], max_tokens=4, seed=9)
        assert len(inner.asked) == 5, "without temperature a seed decides nothing"
    other = Counting("another")
    with Recorded(other, tmp_path / "r") as recorded:
        recorded.generate([ask("a")], max_tokens=4)
    assert len(other.asked) == 1


def test_copies_are_kept_apart_and_stay_what_they_are(tmp_path):
    options = {"max_tokens": 4, "temperature": 1.0}
    whole = Counting().generate([ask("a")] * 3, **options)
    inner = Counting()
    with Recorded(inner, tmp_path / "r") as recorded:
        recorded.generate([ask("a")], **options)
        assert (
            recorded.generate([ask("a"), ask("b"), ask("a"), ask("a")], **options)[::2] == whole[::2][:1] + whole[1:2]
        )
        assert [reply.text for reply in recorded.generate([ask("a")] * 3, **options)] == ["a/0/0", "a/1/0", "a/2/0"]
    assert inner.asked.count(ask("b")) == 1


def test_a_crash_costs_what_was_under_way(tmp_path):
    prompts = [ask(str(i)) for i in range(6)]
    broken = Counting(fail_at=4)
    with pytest.raises(KeyboardInterrupt), Recorded(broken, tmp_path / "r") as recorded:
        recorded.generate(prompts, max_tokens=4)
    rest = Counting()
    with Recorded(rest, tmp_path / "r") as recorded:
        assert len(recorded.generate(prompts, max_tokens=4)) == 6
    assert len(rest.asked) == 2


def test_a_generator_that_does_not_stream(tmp_path):
    class Whole:
        identity = {"model": "whole"}  # noqa: RUF012

        def generate(self, prompts, **options):
            return Counting().generate(prompts, **options)

    with Recorded(Whole(), tmp_path / "r") as recorded:
        assert isinstance(recorded, Generator)
        assert [reply.text for reply in recorded.generate([ask("a"), ask("b")], max_tokens=4)] == ["a/0/0", "b/0/0"]
        assert len(recorded) == 2


def test_replaying_asks_nobody_and_names_what_is_missing(tmp_path):
    inner = Counting()
    with Recorded(inner, tmp_path / "r") as recorded:
        recorded.generate([ask("a")], max_tokens=4)
    with Recorded({"model": "m"}, tmp_path / "r", "replay") as replayed:
        assert replayed.generate([ask("a")], max_tokens=4)[0].text == "a/0/0"
        with pytest.raises(ModelError, match=r"1 replies are not recorded, the first for prompt 1 \('new'\)"):
            replayed.generate([ask("a"), ask("new")], max_tokens=4)
    assert len(inner.asked) == 1
    with pytest.raises(ModelError, match="no recorded replies"):
        Recorded(inner, tmp_path / "nowhere", "replay")
    with pytest.raises(ModelError, match="filling needs a generator"):
        Recorded({"model": "m"}, tmp_path / "r")


def test_what_was_asked_and_said_can_be_read(tmp_path):
    with Recorded(Counting(), tmp_path / "r") as recorded:
        recorded.generate([ask("日本?")], max_tokens=4)
    row = sqlite3.connect(tmp_path / "r").execute("SELECT identity, conversation, parameters, text, raw FROM replies")
    identity, conversation, parameters, text, raw = row.fetchone()
    assert json.loads(identity) == {"model": "m"}
    assert json.loads(conversation) == ask("日本?")
    assert json.loads(parameters) == {"max_tokens": 4, "temperature": 0.0, "seed": 0, "copy": 0}
    assert (text, json.loads(raw)) == ("日本?/0/0", {"said": "日本?/0/0"})


def test_a_file_that_is_something_else(tmp_path):
    (tmp_path / "r").write_bytes(b"not a database, but long enough to look at" * 50)
    with pytest.raises(ModelError, match="no file of recorded replies"):
        Recorded(Counting(), tmp_path / "r")


def test_two_writers_share_a_file(tmp_path):
    prompts = [ask(str(i)) for i in range(60)]
    found = []

    def write():
        with Recorded(Counting(), tmp_path / "r") as recorded:
            found.append(recorded.generate(prompts, max_tokens=4))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert found[0] == found[1] == found[2] == found[3]
    with Recorded(Counting(), tmp_path / "r") as recorded:
        assert len(recorded) == 60


def test_a_local_model_behind_it(tiny, tmp_path):
    prompts = [ask("hello"), ask("hi")] * 2
    options = {"max_tokens": 6, "temperature": 1.0}
    bare = LocalGenerator(tiny).generate(prompts, **options)
    with Recorded(LocalGenerator(tiny, batch_size=2), tmp_path / "r") as recorded:
        recorded.generate(prompts[:1], **options)
        assert recorded.generate(prompts, **options) == bare
        assert recorded.generate(prompts, **options) == bare
