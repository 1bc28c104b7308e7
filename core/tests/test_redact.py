"""Which keys hide their value: secrets do, words of a vocabulary do not."""

from __future__ import annotations

import pytest

from budwood.redact import MASK, redact


@pytest.mark.parametrize("key", ["hub_token", "apiKey", "db-password", "access_key", "private_key", "Authorization"])
def test_secrets_are_masked(key: str) -> None:
    assert redact({key: "s3cret"}) == {key: MASK}


@pytest.mark.parametrize("key", ["eos_token", "pad_token", "fake_image_token", "tokens", "key"])
def test_words_of_a_vocabulary_are_not(key: str) -> None:
    assert redact({key: "</s>"}) == {key: "</s>"}
