"""``budwood lcqa pick`` as a person types it: with a head, with an endpoint over HTTP, and with files of every kind."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from budwood.cli import main
from budwood_lcqa_selector.head import SelectorHead
from budwood_lcqa_selector.prompts import UNREASONED
from budwood_lcqa_selector.worlds import fact_chain

ROW = fact_chain(4, hops=2, pool=8)
GOLD = [passage.id for passage in ROW.passages if passage.id in ROW.gold_sets[0]]


@pytest.fixture
def head(tmp_path):
    """The weights that training finds, rounded: two hops are followed."""
    made = SelectorHead.fresh()
    made.weights[:] = [6, 2, 10, -4, 11, 1, 2, 1, 8]
    made.save(tmp_path / "head.safetensors")
    return f"head:{tmp_path / 'head.safetensors'}"


@pytest.fixture
def passages(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text("\n".join(json.dumps({"id": p.id, "title": p.title, "text": p.text}) for p in ROW.passages))
    return path


def typed(capsys, *words) -> tuple[int, dict, str]:
    code = main(["lcqa", "pick", *map(str, words), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), err


def test_with_a_head(capsys, head, passages):
    code, found, shown = typed(capsys, "--question", ROW.question, "--passages", passages, "--picker", head)
    assert code == 0
    assert found["ids"] == GOLD
    assert found["context"] == "\n\n".join(passage.titled for passage in ROW.chosen(GOLD))
    assert f"2 of 8 passages, {found['tokens']:,} of {found['pool_tokens']:,} tokens" in shown


def test_plain_text(capsys, head, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("\r\n\r\n".join(passage.text for passage in ROW.passages))
    code, found, _ = typed(capsys, "--question", ROW.question, "--passages", path, "--picker", head)
    assert code == 0
    assert set(found["ids"]) <= {f"p{i}" for i in range(1, 9)}


class Completions(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that says what the test wants."""

    content, asked = "", []

    def do_POST(self):
        type(self).asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        message = {"role": "assistant", "content": self.content}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    Completions.asked = []
    server = HTTPServer(("127.0.0.1", 0), Completions)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1#some-model"
    server.shutdown()
    server.server_close()
    thread.join()


def test_with_an_endpoint(capsys, endpoint, passages):
    Completions.content = 'Let me see.\n{"rationale": "both facts", "ids": ["p2", "p1"]}'
    code, found, _ = typed(capsys, "--question", ROW.question, "--passages", passages, "--picker", endpoint)
    assert code == 0, "the endpoint was asked once and answered"
    assert found["ids"] == ["p1", "p2"], "in the order of the file"
    assert found["rationale"] == "both facts"
    (asked,) = Completions.asked
    assert asked["model"] == "some-model"
    assert ROW.question in asked["messages"][-1]["content"]


TRAINED = """\
plugins:
  lcqa-selector:
    task: Choose the facts.
    words: 3
    rationale: false
    rows: mined.jsonl
    stages:
      - {name: wide, red: 4, prompt: All that may help., max_steps: 5}
      - {name: tight, red: 1, prompt: No more than needed.}
"""


def test_a_picker_is_asked_as_it_was_trained(capsys, endpoint, passages, tmp_path):
    (tmp_path / "run.yaml").write_text(TRAINED)
    words = (
        "--question",
        ROW.question,
        "--passages",
        passages,
        "--picker",
        endpoint,
        "--config",
        tmp_path / "run.yaml",
    )
    Completions.content = '{"ids": ["p1"]}'
    assert typed(capsys, *words)[0] == 0
    system, user = (message["content"] for message in Completions.asked[0]["messages"])
    assert system == f"Choose the facts. {UNREASONED} No more than needed."
    first = ROW.passages[0]
    assert f"[p1] {first.title}: {' '.join(first.text.split()[:3])} …\n" in user
    Completions.content = 'So: {"ids": ["p1"]}'
    code, _, said = typed(capsys, *words)
    assert code != 0
    assert "malformed: leading_text" in said, "think was not allowed in training"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("a: [", "cannot be read"),
        ("", "no section plugins.lcqa_selector"),
        ("plugins: {lcqa_selector: {stages: []}}", "no section plugins.lcqa_selector"),
        ("plugins: {lcqa_selector: {words: many}}", "valid integer"),
    ],
)
def test_a_yaml_that_says_nothing_of_asking(capsys, endpoint, passages, tmp_path, text, message):
    if text is not None:
        (tmp_path / "run.yaml").write_text(text)
    code, _, said = typed(
        capsys, "--question", "q", "--passages", passages, "--picker", endpoint, "--config", tmp_path / "run.yaml"
    )
    assert code != 0
    assert message in said


def test_a_head_is_asked_nothing(capsys, head, passages, tmp_path):
    (tmp_path / "run.yaml").write_text(TRAINED)
    words = ("--question", "q", "--passages", passages, "--picker", head, "--config", tmp_path / "run.yaml")
    code, _, said = typed(capsys, *words)
    assert code != 0
    assert "asked nothing" in said


def test_a_malformed_answer_is_an_error(capsys, endpoint, passages):
    Completions.content = "p1 and p2, I think"
    code, found, said = typed(capsys, "--question", ROW.question, "--passages", passages, "--picker", endpoint)
    assert code != 0
    assert "malformed: no_json" in said
    assert found["error"]["do"].startswith("Use a larger model")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "no such file"),
        ("missing.txt", None, "cannot be read"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "line 2"),
        ("bad.jsonl", b'{"text": "a"}\n{"title": "b"}\n', 'line 2: a passage needs "text"'),
        (
            "bad.jsonl",
            b'{"text": "a"}\n{"id": null, "text": "b"}\n',
            "line 2: a passage's id is a string or an integer",
        ),
        ("latin.txt", "für".encode("latin-1"), "cannot be read"),
        ("twice.jsonl", b'{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n', "two passages have the id '1'"),
    ],
)
def test_bad_files(capsys, head, tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    code, _, said = typed(capsys, "--question", "q", "--passages", path, "--picker", head)
    assert code != 0
    assert message in said


def test_an_empty_file(capsys, head, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    code, found, _ = typed(capsys, "--question", "q", "--passages", tmp_path / "empty.txt", "--picker", head)
    assert (code, found["ids"], found["context"]) == (0, [], "")
