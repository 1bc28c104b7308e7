"""Generators, judges, encoders and chunkers by the names that the command line and configurations use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from budwood.api import ConfigError
from budwood_lcqa_selector.chunking import Chunker, identity, semantic, window
from budwood_lcqa_selector.judges import Contains, ExactMatch, Judge, LLMJudge, TokenF1

if TYPE_CHECKING:
    from budwood_models import Encoder, Generator

LEXICAL = {"contains": Contains, "exact": ExactMatch, "f1": TokenF1}


def generator_named(name: str, key_env: str | None = None, concurrency: int = 8) -> Generator:
    """``extractive``, ``symbolic``, an endpoint ``http(s)://host/v1#model`` with so many requests at a time, else a
    language model to load. :raises ConfigError: for an address that names no model."""
    if name == "extractive":
        from budwood_lcqa_selector.extractive import ExtractiveGenerator

        return ExtractiveGenerator()
    if name == "symbolic":
        from budwood_lcqa_selector.worlds import SymbolicGenerator

        return SymbolicGenerator()
    if name.startswith(("http://", "https://")):
        from budwood_models import Endpoint

        base_url, _, model = name.partition("#")
        if not model:
            raise ConfigError(
                "this address names no model", where=name, do="Add its name after a number sign: http://host/v1#model"
            )
        return Endpoint(base_url, model, key_env=key_env, concurrency=concurrency)
    from budwood_models import LocalGenerator, load_language_model

    return LocalGenerator(load_language_model(name))


def judge_named(name: str, key_env: str | None = None, concurrency: int = 8) -> Judge:
    """``contains``, ``exact``, ``f1``; any other name is a generator that judges with the rubric."""
    return LEXICAL[name]() if name in LEXICAL else LLMJudge(generator_named(name, key_env, concurrency))


def encoder_named(name: str) -> Encoder:
    from budwood_models import load_encoder

    return load_encoder(name)


def chunker_named(name: str, max_tokens: int, encoder: str) -> Chunker:
    if name == "semantic":
        return semantic(encoder_named(encoder), min_tokens=min(32, max_tokens), max_tokens=max_tokens)
    return window(max_tokens) if name == "window" else identity
