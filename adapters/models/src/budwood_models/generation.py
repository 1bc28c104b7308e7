"""What every source of replies has in common: a list of conversations in, one reply each out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from budwood_models.errors import ModelError

Message = Mapping[str, str]
Conversation = Sequence[Message]
"""``[{"role": "user", "content": "..."}, ...]``; roles are ``system``, ``user`` and ``assistant``."""

SHOWN = 80


@dataclass(frozen=True)
class Reply:
    """``text`` without special tokens; lengths in tokens; ``truncated``: it was cut at ``max_tokens``.

    ``raw`` is what an endpoint sent, None for a local model.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    truncated: bool
    raw: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)


@runtime_checkable
class Generator(Protocol):
    """A source of replies. ``identity`` is JSON that differs whenever replies may differ, and holds no secret."""

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def generate(
        self, prompts: Sequence[Conversation], *, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Sequence[Reply]:
        """One reply a conversation, in order. Temperature 0 takes the likeliest token; else ``seed`` decides."""
        ...


@runtime_checkable
class Streaming(Generator, Protocol):
    """A generator that gives replies as they are ready; all of ours do."""

    def stream(
        self, prompts: Sequence[Conversation], *, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[tuple[int, Reply]]:
        """(index, reply) in the order in which they are ready, so that each can be kept at once."""
        ...


def check(prompts: Sequence[Conversation]) -> None:
    """Raise :class:`ModelError` for the first one that is no conversation of sound text."""
    for i, prompt in enumerate(prompts):
        ok = isinstance(prompt, Sequence) and not isinstance(prompt, str) and len(prompt) > 0
        if not ok or not all(
            isinstance(message, Mapping) and {"role", "content"} <= set(message) for message in prompt
        ):
            do = 'A conversation is a list of {"role": ..., "content": ...}'
            raise ModelError(f"prompt {i} is no conversation but {type(prompt).__name__}", do=do)
        for message in prompt:
            if not isinstance(message["content"], str):
                raise ModelError(
                    f"prompt {i} has a message whose content is {type(message['content']).__name__}, not text"
                )
            try:
                message["content"].encode()
            except UnicodeEncodeError as error:
                what = f"prompt {i} has half a character at position {error.start} (a lone surrogate)"
                raise ModelError(what, do="Repair the text: it was cut or decoded wrongly") from None


def in_order(ready: Iterator[tuple[int, Reply]], n: int) -> list[Reply]:
    """What ``stream`` gives, as ``generate`` gives it."""
    replies = dict(ready)
    return [replies[i] for i in range(n)]


def copies(prompts: Sequence[Conversation]) -> list[int]:
    """For each conversation, how many equal ones come before it: copies are sampled apart, the first always alike."""
    seen: dict[str, int] = {}
    numbers = []
    for prompt in prompts:
        key = canonical(prompt)
        numbers.append(seen.get(key, 0))
        seen[key] = numbers[-1] + 1
    return numbers


def canonical(data: Any) -> str:
    """JSON with sorted keys: equal text for equal data."""
    return json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def shown(prompt: Conversation) -> str:
    """The beginning of the last message, to name a conversation in an error."""
    text = " ".join(prompt[-1]["content"].split()) if prompt else ""
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")
