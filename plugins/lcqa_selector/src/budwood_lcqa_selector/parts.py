"""Generators, judges, encoders and chunkers by the names that the command line and configurations use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from budwood_lcqa_selector.chunking import Chunker, identity, semantic, window
from budwood_lcqa_selector.judges import Contains, ExactMatch, Judge, LLMJudge, TokenF1

if TYPE_CHECKING:
    from budwood_models import Encoder, Generator

LEXICAL = {"contains": Contains, "exact": ExactMatch, "f1": TokenF1}


def generator_named(name: str, key_env: str | None = None) -> Generator:
    """``extractive``, ``symbolic``, an endpoint ``http(s)://host/v1#model``, else a language model to load."""
    if name == "extractive":
        from budwood_lcqa_selector.extractive import ExtractiveGenerator

        return ExtractiveGenerator()
    if name == "symbolic":
        from budwood_lcqa_selector.worlds import SymbolicGenerator

        return SymbolicGenerator()
    if name.startswith(("http://", "https://")):
        from budwood_models import Endpoint

        base_url, _, model = name.partition("#")
        return Endpoint(base_url, model, key_env=key_env)
    from budwood_models import LocalGenerator, load_language_model

    return LocalGenerator(load_language_model(name))


def judge_named(name: str, key_env: str | None = None) -> Judge:
    """``contains``, ``exact``, ``f1``; any other name is a generator that judges with the rubric."""
    return LEXICAL[name]() if name in LEXICAL else LLMJudge(generator_named(name, key_env))


def encoder_named(name: str) -> Encoder:
    from budwood_models import load_encoder

    return load_encoder(name)


def chunker_named(name: str, max_tokens: int, encoder: str) -> Chunker:
    if name == "semantic":
        return semantic(encoder_named(encoder), min_tokens=min(32, max_tokens), max_tokens=max_tokens)
    return window(max_tokens) if name == "window" else identity
