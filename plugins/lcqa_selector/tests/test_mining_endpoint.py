"""Mining through a real endpoint on loopback that fails for good half-way, and goes on when it is back."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

import pytest

from budwood_lcqa_selector.answer_cache import AnswerCache
from budwood_lcqa_selector.answering import read_prompt
from budwood_lcqa_selector.asking import Asker
from budwood_lcqa_selector.judges import Contains, LLMJudge
from budwood_lcqa_selector.mining import Miner, Mining
from budwood_lcqa_selector.worlds import fact_chain, follow
from budwood_models import Endpoint, ModelError


@pytest.fixture
def server():
    """Follows chains of facts, and judges by comparing; ``left``: requests until it answers 500, None for never."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            messages = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
            with server.lock:
                server.answered += 1
                broken = server.left is not None and server.answered > server.left
            body = b"out of order" if broken else json.dumps(self.reply(messages)).encode()
            self.send_response(500 if broken else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def reply(self, messages):
            content = messages[-1]["content"]
            if "References:" in content:
                reference, answer = content.partition("\n- ")[2].split("\nAnswer: ")
                text = json.dumps({"verdict": "correct" if reference == answer else "incorrect"})
            else:
                text = follow(*read_prompt(messages))
            choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}

        def log_message(self, *args): ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.lock, server.answered, server.left = Lock(), 0, None
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_mining_goes_on_when_the_endpoint_is_back(server, tmp_path):
    rows = [fact_chain(seed, pool=6) for seed in range(6)]
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "chains", key_env=None, retries=0)

    def mine():
        with AnswerCache(tmp_path / "answers.sqlite") as cache:
            asker = Asker(endpoint, Contains(), cache)
            found = list(Miner(asker, Mining("quickxplain", reask=0.0)).mine(rows))
        return found, asker.counts

    server.left = 30
    with pytest.raises(ModelError, match="500"):
        mine()
    with AnswerCache(tmp_path / "answers.sqlite") as cache:
        assert cache.count() == 30, "every reply that came is kept"
    server.answered, server.left = 0, None
    found, counts = mine()
    assert [set(result.row.gold_sets[0]) for result in found] == [set(row.gold_sets[0]) for row in rows]
    assert counts.calls == sum(result.calls for result in found) - 30 == server.answered
    assert (counts.prompt_tokens, counts.completion_tokens) == (5 * counts.calls, 2 * counts.calls)
    assert mine()[1].calls == 0


def test_a_model_judges_over_the_same_protocol(server):
    rows = [fact_chain(seed, pool=6) for seed in range(3)]
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "chains", key_env=None, retries=0)
    asker = Asker(endpoint, LLMJudge(endpoint), AnswerCache(None))
    found = list(Miner(asker, Mining(reask=0.0)).mine(rows))
    assert [set(result.row.gold_sets[0]) for result in found] == [set(row.gold_sets[0]) for row in rows]
    assert asker.counts.judge_tokens == 7 * asker.counts.calls
