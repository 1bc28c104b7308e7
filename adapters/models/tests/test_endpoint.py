"""The endpoint against a real server that is overloaded, broken, slow, silent, indiscreet."""

from __future__ import annotations

import json
import logging
import time
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import quote

import pytest
from chat_server import answer, completion, drip, echo, hang_up, running, slowly

from budwood_models import Endpoint, Generator, ModelError, Recorded, requests

CANARY = "sk-canary-3f9a77c1e5"


def ask(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CANARY_KEY", CANARY)
    monkeypatch.setattr(requests, "FIRST_WAIT", 0.01)
    with running() as server:
        yield server


def endpoint(server, **options):
    options = {"timeout": 5.0, "retries": 3, "deadline": 20.0, **options}
    return Endpoint(server.url, "echo-1", "CANARY_KEY", **options)


def test_asks_and_reads(server):
    source = endpoint(server, parameters={"top_p": 0.5, "seed": None})
    assert isinstance(source, Generator)
    replies = source.generate([ask("one"), ask("two")], max_tokens=9, temperature=0.7, seed=4)
    assert [reply.text for reply in replies] == ["echo: one", "echo: two"]
    assert (replies[0].prompt_tokens, replies[0].completion_tokens, replies[0].truncated) == (7, 3, False)
    sent = next(body for body in server.bodies if body["messages"] == ask("one"))
    fixed = {"model": "echo-1", "max_tokens": 9, "temperature": 0.7, "top_p": 0.5}
    assert sent == {**fixed, "messages": ask("one"), "path": "/v1/chat/completions"}
    assert server.headers[0]["Authorization"] == f"Bearer {CANARY}"
    assert source.generate([], max_tokens=1) == []


def test_order_is_that_of_the_prompts_and_concurrency_is_bounded(server):
    server.script = [slowly(0.3), *[slowly(0.05)] * 7]
    replies = endpoint(server, concurrency=3).generate([ask(str(i)) for i in range(12)], max_tokens=5)
    assert [reply.text for reply in replies] == [f"echo: {i}" for i in range(12)]
    assert server.most == 3


def test_a_failure_loses_no_reply_that_was_under_way(server, tmp_path):
    server.script = [answer(b"", 400), slowly(0.3), slowly(0.3)]
    prompts = [ask(str(i)) for i in range(9)]
    with Recorded(endpoint(server, concurrency=3), tmp_path / "r") as recorded:
        with pytest.raises(ModelError, match="400"):
            recorded.generate(prompts, max_tokens=5)
        assert len(server.bodies) == 3, "nothing new is asked after a failure"
        assert len(recorded) == 2
        assert len(recorded.generate(prompts, max_tokens=5)) == 9
    assert len(server.bodies) == 10


def test_replies_are_given_as_they_come(server):
    server.script = [slowly(0.5)]
    ready = [i for i, _ in endpoint(server, concurrency=2).stream([ask(str(i)) for i in range(4)], max_tokens=5)]
    assert sorted(ready) == [0, 1, 2, 3]
    assert ready[-1] in (0, 1)  # whichever of the first two the server kept waiting


FAILURES = {
    "429": answer(b'{"error": "slow down"}', 429),
    "500": answer(b"oops", 500),
    "503": answer(b"", 503),
    "garbage": answer(b"<html>proxy</html>"),
    "nothing": answer(b""),
    "no choices": answer(b'{"choices": []}'),
    "a number": answer(b"3"),
    "deep": answer(b"[" * 100_000),
    "deep but sound": answer(b"[" * 3_000 + b"]" * 3_000),
    "usage is a list": answer(completion("hi", usage=[1])),
    "usage is a word": answer(completion("hi", usage="many")),
    "usage counts words": answer(completion("hi", usage={"prompt_tokens": "many"})),
    "usage below nothing": answer(completion("hi", usage={"completion_tokens": -9})),
    "usage beyond reason": answer(completion("hi", usage={"completion_tokens": 10**30})),
    "usage that is none": answer(b'{"choices": [{"message": {"content": "hi"}}], "usage": {"prompt_tokens": NaN}}'),
    "hang up": hang_up,
    "slow": slowly(1.0),
    "drip": drip,
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_may_pass_is_tried_again(server, name):
    server.script = [FAILURES[name]] * 2
    source = endpoint(server, timeout=0.4)
    assert source.generate([ask("hi")], max_tokens=5)[0].text == "echo: hi"
    assert len(server.bodies) == 3
    assert source.budget.spent == 10


@pytest.mark.parametrize(("name", "says"), [("500", "500: 'oops'"), ("nothing", "an empty body"), ("garbage", "proxy")])
def test_in_the_end_it_is_said_what_came(server, name, says):
    server.script = [FAILURES[name]] * 9
    with pytest.raises(ModelError) as caught:
        endpoint(server, retries=2).generate([ask("what is the matter")], max_tokens=5)
    assert len(server.bodies) == 3
    said = str(caught.value)
    assert says in said
    assert "prompt 0 ('what is the matter') got no reply from echo-1 (attempts: 3)" in said
    assert server.url in said


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (answer(b'{"error": "bad key"}', 401), "Check the key in CANARY_KEY"),
        (answer(b'{"error": "no such model"}', 404), "Check base_url (it usually ends in /v1)"),
        (answer(b'{"error": "max_tokens"}', 400), "400"),
        (answer(b"", 302, location="http://127.0.0.1:1/"), "302"),
        (answer(completion(None, "content_filter")), "finish_reason 'content_filter'"),
    ],
    ids=["401", "404", "400", "redirect", "no text"],
)
def test_what_will_not_pass_is_asked_once(server, behaviour, says):
    server.script = [behaviour] * 5
    with pytest.raises(ModelError) as caught:
        endpoint(server).generate([ask("hi")], max_tokens=5)
    assert says in str(caught.value)
    assert len(server.bodies) == 1


def test_truncated_and_empty_replies_are_replies(server):
    server.script = [answer(completion("cut", "length")), answer(completion(None, "length")), answer(completion(""))]
    replies = endpoint(server, concurrency=1).generate([ask(str(i)) for i in range(3)], max_tokens=5)
    assert [(reply.text, reply.truncated) for reply in replies] == [("cut", True), ("", True), ("", False)]
    assert replies[0].raw["choices"][0]["finish_reason"] == "length"


def test_retry_after_is_honoured(server):
    server.script = [answer(b"", 429, retry_after="0.4")]
    endpoint(server).generate([ask("hi")], max_tokens=5)
    assert server.times[1] - server.times[0] >= 0.4


def test_retry_after_as_a_date_and_as_nonsense():
    now = datetime(2026, 5, 1, 12, tzinfo=UTC)
    header = format_datetime(now + timedelta(seconds=30), usegmt=True)
    assert requests.retry_after(header, now.timestamp()) == 30
    assert [requests.retry_after(text, 0.0) for text in (None, "", "soon", "nan", "inf", "-3")] == [*[None] * 5, 0.0]


def test_bytes_now_and_then_do_not_lengthen_an_attempt(server):
    source = endpoint(server, timeout=0.4, retries=0)
    source.generate([ask("hi")], max_tokens=5)
    server.script = [drip]
    begun = time.monotonic()
    with pytest.raises(ModelError, match=r"no answer within 0\.\d+ s"):
        source.generate([ask("hi")], max_tokens=5)
    assert time.monotonic() - begun < 1.5  # the server drips for 2 s


def test_the_deadline_ends_waiting(server):
    server.script = [answer(b"", 503, retry_after="60")] * 3
    begun = time.monotonic()
    with pytest.raises(ModelError, match="503"):
        endpoint(server, deadline=0.5).generate([ask("hi")], max_tokens=5)
    assert time.monotonic() - begun < 5
    assert len(server.bodies) == 1


def test_waits_grow_and_are_drawn(monkeypatch):
    from tenacity import RetryCallState

    monkeypatch.setattr(requests, "FIRST_WAIT", 0.5)
    waits = {}
    for n in (1, 3, 20):
        state = RetryCallState(None, None, (), {})
        state.attempt_number = n
        waits[n] = [requests._pause(state) for _ in range(300)]
    assert all(0 <= wait <= 0.5 for wait in waits[1])
    assert 1.5 < max(waits[3]) <= 2.0
    assert 25 < max(waits[20]) <= 30
    assert len(set(waits[3])) > 100


def test_nobody_there():
    with running() as gone:
        url = gone.url
    with pytest.raises(ModelError, match=r"connection failed \(ConnectError.*Check that the server runs"):
        Endpoint(url, "m", None, retries=0).generate([ask("hi")], max_tokens=5)


def test_the_budget_is_kept(server):
    source = endpoint(server, token_budget=25, concurrency=1)
    source.generate([ask("a"), ask("b")], max_tokens=5)
    with pytest.raises(ModelError, match="20 tokens of a budget of 25 are used, 0 are held, and 6 more do not fit"):
        source.generate([ask("c")], max_tokens=6)
    assert len(server.bodies) == 2


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 0, "completion_tokens": 0}, {"total_tokens": 9}])
def test_a_server_that_does_not_count_is_charged_what_was_held(server, usage):
    server.script = [answer(completion("hi", usage=usage))] * 9
    source = endpoint(server, token_budget=12, concurrency=1)
    assert source.generate([ask("a")], max_tokens=5)[0].completion_tokens == 0
    assert source.budget.spent == 5
    with pytest.raises(ModelError, match="10 tokens of a budget of 12 are used, 0 are held, and 5 more do not fit"):
        source.generate([ask("b"), ask("c")], max_tokens=5)
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "", "ftp://x/v1", f"http://me:{CANARY}@host/v1", f"http://host/v1?key={CANARY}"]
)
def test_addresses_that_are_refused(url):
    with pytest.raises(ModelError) as caught:
        Endpoint(url, "m")
    assert CANARY not in str(caught.value)


def test_prompts_that_are_none(server):
    for prompts, says in (
        [["hi"], "no conversation"],
        [[[]], "no conversation"],
        [[ask(3)], "is int"],
        [[ask("a\ud800")], "half a character"],
    ):
        with pytest.raises(ModelError, match=says):
            endpoint(server).generate(prompts, max_tokens=5)
    assert server.bodies == []


def test_the_key_is_nowhere(server, monkeypatch, tmp_path, caplog):
    """Through every path: replies, errors of each kind, logs at their loudest, representations, the record on disk."""
    caplog.set_level(logging.DEBUG)
    leaky = f"you sent {CANARY}"
    texts = []
    for behaviour in (
        *(answer(b"." * (requests.QUOTED - n) + CANARY.encode(), 500) for n in range(len(CANARY) + 1)),
        answer(leaky.encode(), 401),
        answer(leaky.encode(), 500),
        answer(leaky.encode(), 418, x_key=CANARY),
        answer(leaky.encode()),
        answer(f'{{"{CANARY}": 1}}'.encode()),
        answer(completion(leaky, **{CANARY: [CANARY]})),
        hang_up,
        slowly(0.3),
    ):
        server.script = [behaviour] * 2
        source = endpoint(server, retries=1, timeout=0.2)
        try:
            with Recorded(source, tmp_path / "replies.sqlite") as recorded:
                texts.append(repr(recorded.generate([ask(str(len(texts)))], max_tokens=5)) + repr(recorded.identity))
        except ModelError as error:
            texts.append("".join(traceback.format_exception(error)) + repr(error) + repr(error.__context__))
        texts.append(repr(source) + str(vars(source)) + str(source.identity))
        server.script = []
    monkeypatch.setenv("CANARY_KEY", f"{CANARY}\n\u00e9")
    with pytest.raises(ModelError, match="no key") as caught:
        endpoint(server).generate([ask("hi")], max_tokens=5)
    monkeypatch.delenv("CANARY_KEY")
    with pytest.raises(ModelError, match="export CANARY_KEY=") as unset:
        endpoint(server).generate([ask("hi")], max_tokens=5)
    texts += ["".join(traceback.format_exception(error.value)) for error in (caught, unset)]
    texts += [record.getMessage() for record in caplog.records if record.name.startswith(("budwood", "httpx"))]
    texts += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    assert any("you sent ***" in text for text in texts), "the server's words are shown, without the key"
    assert [text for text in texts if CANARY in text] == []
    cut = {CANARY[i : i + 6] for i in range(len(CANARY) - 5)}
    assert [text for text in texts if any(part in text for part in cut)] == []


KEYS = (CANARY, "sk/canary+3f9a77c1e5/Zz==", "sk-ca\"na\\ry'3f9a77c1e5")
WAYS = {
    "plain": str,
    "repr": lambda key: repr(key)[1:-1],
    "json": lambda key: json.dumps(key)[1:-1],
    "json twice": lambda key: json.dumps(json.dumps(key))[3:-3],
    "json with slashes": lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    "json by number": lambda key: "".join(f"\\u{ord(c):04X}" for c in key),
    "address": lambda key: quote(key, safe=""),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", KEYS, ids=["words", "base64", "quotes"])
def test_no_part_of_the_key_is_shown_where_a_body_is_cut(way, key):
    """For every place of the cut. A part is four characters of the key in a row."""
    written = WAYS[way](key)
    parts = {part for form in (key, written) for i in range(len(form) - 3) if (part := form[i : i + 4]) != "\\u00"}
    for code in (500, 401, 418, 200):
        for before in range(requests.QUOTED - len(written) - 2, requests.QUOTED + 2):
            sent = requests.Answer(code, {}, ("." * before + written + "." * 50).encode())
            with pytest.raises(requests.Refused) as caught:
                requests.interpret(sent, key, "CANARY_KEY")
            said = caught.value.what
            assert "..." in said
            assert [part for part in parts if part in said] == [], said


def test_a_key_in_another_encoding_is_masked():
    sent = requests.Answer(500, {}, f"you sent {CANARY}".encode("utf-16"))
    with pytest.raises(requests.Transient, match=r"you sent \*\*\*"):
        requests.interpret(sent, CANARY, None)


@pytest.mark.parametrize("key", ["none", "EMPTY", "ollama"])
def test_a_key_that_is_no_secret_takes_no_word_out_of_a_reply(server, monkeypatch, key):
    monkeypatch.setenv("CANARY_KEY", key)
    text = f"{key} of it: {key}s, {key}"
    server.script = [answer(completion(text, **{key: key})), answer(f"{text} {key}theless".encode(), 400)]
    (reply,) = endpoint(server).generate([ask("hi")], max_tokens=5)
    assert (reply.text, reply.raw[key]) == (text, key)
    with pytest.raises(ModelError, match=rf"\*\*\* of it: {key}s, \*\*\* {key}theless"):
        endpoint(server).generate([ask("hi")], max_tokens=5)


def test_half_a_character_in_a_reply_is_replaced(server, tmp_path):
    sent = rb'{"choices": [{"message": {"content": "a\ud83d b\ud83d\ude00 \ude00"}}], "\udc00": ["\udc00"]}'
    server.script = [answer(sent)]
    with Recorded(endpoint(server), tmp_path / "r") as recorded:
        (reply,) = recorded.generate([ask("hi")], max_tokens=5)
        assert reply.text == "a\ufffd b😀 \ufffd"
        assert reply.raw["\ufffd"] == ["\ufffd"]
        assert recorded.generate([ask("hi")], max_tokens=5) == [reply]
    assert len(server.bodies) == 1


def test_without_a_key_none_is_sent(server):
    Endpoint(server.url, "echo-1", None).generate([ask("hi")], max_tokens=5)
    assert "Authorization" not in server.headers[0]
    server.script = [answer(b"", 401)]
    with pytest.raises(ModelError, match="It wants a key"):
        Endpoint(server.url, "echo-1", None).generate([ask("hi")], max_tokens=5)


def test_the_echo_itself(server):
    server.script = [echo]
    assert endpoint(server).generate([ask("日本 😀")], max_tokens=5)[0].text == "echo: 日本 😀"
