"""Replies of an OpenAI-compatible endpoint (``POST {base_url}/chat/completions``), from a server or a service.

The key is read from the environment when a request is made. It is in no attribute, error, log line, identity or reply: a
server that sends it back gets it masked. Keys of fewer than 16 characters are no secrets and stay in replies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property
from typing import TYPE_CHECKING, Any

from budwood_models.errors import ModelError
from budwood_models.generation import Conversation, Reply, check, copies, in_order, shown
from budwood_models.requests import Answer, Budget, Refused, Transient, attempts, check_url, interpret, mask

if TYPE_CHECKING:
    import httpx

LARGEST = 64_000_000
"""Bytes of one answer."""


class Endpoint:
    """A model behind an address.

    ``base_url``  up to and with ``/v1``.  ``model``  the name the server knows.
    ``key_env``  environment variable with the key; None sends none.
    ``timeout``  seconds for one attempt; ``deadline``  for one reply, all attempts and waits together.
    ``retries``  attempts after the first: upon 408, 409, 429, 5xx, time-outs, dropped connections and answers that are none,
    with exponential waits, or what Retry-After says.
    ``concurrency``  requests at a time.
    ``token_budget``  tokens that this object may use in all, prompts included; an error is raised instead of going over it.
    ``parameters``  further fields of every request, in place of ours of the same name; None removes one.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key_env: str | None = "OPENAI_API_KEY",
        *,
        timeout: float = 60.0,
        retries: int = 5,
        deadline: float = 600.0,
        concurrency: int = 8,
        token_budget: int | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.base_url = check_url(base_url)
        self.model, self.key_env = model, key_env
        self.timeout, self.retries, self.deadline = timeout, retries, deadline
        self.concurrency = concurrency
        self.budget = Budget(token_budget)
        self.parameters = dict(parameters or {})

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, {self.model!r}, key_env={self.key_env!r})"

    @property
    def identity(self) -> Mapping[str, Any]:
        """Address, model and parameters; not the key, so replies stay valid when it is renewed."""
        return {
            "generator": "endpoint",
            "base_url": self.base_url,
            "model": self.model,
            "parameters": self.parameters,
        }

    def generate(
        self, prompts: Sequence[Conversation], *, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[Reply]:
        """One reply a conversation, in order. The first that cannot be had is raised, once requests under way have ended."""
        return in_order(self.stream(prompts, max_tokens=max_tokens, temperature=temperature, seed=seed), len(prompts))

    def stream(
        self, prompts: Sequence[Conversation], *, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[tuple[int, Reply]]:
        """(index, reply) in the order in which they come. Copies of a conversation get ``seed``, ``seed + 1`` and so on."""
        check(prompts)
        fixed = {"model": self.model, "max_tokens": max_tokens, "temperature": temperature}
        waiting = iter(list(enumerate(zip(prompts, copies(prompts), strict=True))))
        client = self._client  # made before the threads, which would race for it, and before any clock runs
        pool = ThreadPoolExecutor(self.concurrency, "budwood-endpoint")
        running: dict[Future[Reply], int] = {}
        failure: ModelError | None = None
        try:
            while True:
                while failure is None and len(running) < self.concurrency and (item := next(waiting, None)) is not None:
                    index, (prompt, copy) = item
                    body = {**fixed, "seed": seed + copy, "messages": [dict(message) for message in prompt]}
                    body = {name: value for name, value in {**body, **self.parameters}.items() if value is not None}
                    running[pool.submit(self._ask, client, index, body, max_tokens)] = index
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    index = running.pop(future)
                    try:
                        reply = future.result()
                    except ModelError as error:
                        failure = failure or error
                    else:
                        yield index, reply
            if failure is not None:
                raise failure
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, client: httpx.Client, index: int, body: dict[str, Any], max_tokens: int) -> Reply:
        """One reply, with retries; every failure names the prompt and the endpoint."""
        who = f"prompt {index} ({shown(body['messages'])})"
        key = self._key()
        until = time.monotonic() + self.deadline
        with self.budget.reserve(max_tokens, f"{self!r}, {who}") as spend:
            try:
                for attempt in attempts(self.retries, self.deadline):
                    with attempt:
                        reply = interpret(self._post(client, body, key, until), key, self.key_env)
            except Refused as failure:
                tried = f" (attempts: {attempt.retry_state.attempt_number})" if isinstance(failure, Transient) else ""
                what = f"{who} got no reply from {self.model}{tried}: {failure.what}"
                raise ModelError(mask(what, key), where=self.base_url, do=failure.do) from None
            spend(
                reply.prompt_tokens + (reply.completion_tokens or max_tokens)
            )  # a server that does not count may have used all
        return reply

    def _post(self, client: httpx.Client, body: dict[str, Any], key: str | None, until: float) -> Answer:
        """One attempt; a server that sends a byte now and then is no reason to wait longer."""
        import httpx

        headers = {"Authorization": f"Bearer {key}"} if key else {}
        seconds = max(0.001, min(self.timeout, until - time.monotonic()))
        end = time.monotonic() + seconds
        late = Transient(f"no answer within {seconds:.3g} s", "Raise timeout, or ask for fewer tokens")
        received = bytearray()
        try:
            with client.stream("POST", "chat/completions", json=body, headers=headers, timeout=seconds) as response:
                for chunk in response.iter_bytes():
                    received += chunk
                    if time.monotonic() > end:
                        raise late
                    if len(received) > LARGEST:
                        raise Refused(f"its answer is longer than {LARGEST:,} bytes", "Check what base_url leads to")
        except httpx.TimeoutException:
            raise late from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            what = mask(f"the connection failed ({type(error).__name__}: {error})", key)
            raise Transient(what, "Check that the server runs and its address is right") from None
        return Answer(response.status_code, response.headers, bytes(received))

    @cached_property
    def _client(self) -> httpx.Client:
        import httpx

        limits = httpx.Limits(max_connections=self.concurrency)
        return httpx.Client(base_url=f"{self.base_url}/", limits=limits)

    def _key(self) -> str | None:
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            do = f"export {self.key_env}=..., or pass key_env=None for a server that wants no key"
            raise ModelError(f"the environment variable {self.key_env} holds no key", where=self.base_url, do=do)
        if not (key.isascii() and key.isprintable()):
            what = f"what the environment variable {self.key_env} holds is no key: it has characters that no key has"
            raise ModelError(what, where=self.base_url, do="Copy the key again")
        return key
