"""Which keys hide their value: secrets do, words of a vocabulary do not."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from budwood.redact import MASK, redact


@pytest.mark.parametrize("key", ["hub_token", "apiKey", "db-password", "access_key", "private_key", "Authorization"])
def test_secrets_are_masked(key: str) -> None:
    assert redact({key: "s3cret"}) == {key: MASK}


@pytest.mark.parametrize("key", ["eos_token", "pad_token", "fake_image_token", "tokens", "key"])
def test_words_of_a_vocabulary_are_not(key: str) -> None:
    assert redact({key: "</s>"}) == {key: "</s>"}


def test_what_is_masked_of_nested_data() -> None:
    data = {
        "hub_token": "a",
        "API-KEY": "b",
        "apiKey": "c",
        "db": [{"password": 5}, {"client_secret": {"x": "y"}}],
        "uri": "postgresql://me:p@ss@host/db?x=1",
        "query": "https://host/x?a=1&api_key=abc&b=2",
        "note": "see https://me:pw@one/ and https://two/",
        "typed": SecretStr("z"),
        "tokens": 7,
        "max_new_tokens": 9,
        "token": None,
        "use_token": True,
        "file": "sqlite:///a@b.db",
        "mail": "a@b.c",
    }
    assert redact(data) == {
        "hub_token": "***",
        "API-KEY": "***",
        "apiKey": "***",
        "db": [{"password": "***"}, {"client_secret": "***"}],
        "uri": "postgresql://***@host/db?x=1",
        "query": "https://host/x?a=1&api_key=***&b=2",
        "note": "see https://***@one/ and https://two/",
        "typed": "***",
        "tokens": 7,
        "max_new_tokens": 9,
        "token": None,
        "use_token": True,
        "file": "sqlite:///a@b.db",
        "mail": "a@b.c",
    }
    assert data["hub_token"] == "a"
    assert redact(redact(data)) == redact(data)
