"""The tokenizer that a GGUF file describes.

transformers makes one from the same file, but for SmolLM2 it ends prompts with the wrong token, adds ids that the model has no
embedding for, puts a token before every text that the file says not to add, and does not part digits. So it is put together
here from the file's own vocabulary, merges and token kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budwood_models.errors import ModelError, missing_extra

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

CONTROL, USER_DEFINED = 3, 4
"""Kinds of token in a GGUF file, ``tokenizer.ggml.token_type``: never part of text, and added by the model's author."""

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "llama-bpe": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}",
    "qwen2": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}",
}
"""How Llama 3 and Qwen 2 part a text before merging; ``gpt-2`` and ``smollm`` are known to the tokenizers library."""
KNOWN = ("gpt-2", "smollm", *PATTERNS)


def read_metadata(path: Path) -> dict[str, Any]:
    """Every key of a GGUF file and its value; the tensors are not read."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise missing_extra("reading a GGUF file", "gguf", "gguf") from None
    try:
        return {name: field.contents() for name, field in GGUFReader(path).fields.items()}
    except (ValueError, IndexError, KeyError) as error:
        raise ModelError(
            f"this is no readable GGUF file ({error})", where=str(path), do="Fetch it again; it may be cut short"
        ) from error


def build_tokenizer(metadata: Mapping[str, Any], where: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the file's special tokens and chat template, padding on the left.

    ``where`` names the file in errors. Without a pad token in the file, the end token pads.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or pre not in KNOWN:
        raise ModelError(
            f"its tokenizer is of the kind {kind!r} with pre-tokenizer {pre!r}; only byte-level BPE with one of "
            f"{', '.join(KNOWN)} is converted, since a tokenizer that is nearly right trains a model that is wrong",
            where=where,
            do="Load the same model from its original folder or hub id instead",
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    backend = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=pre == "llama-bpe")
    )
    backend.pre_tokenizer = pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    backend.add_special_tokens(
        [AddedToken(t, special=True) for t, k in zip(tokens, kinds, strict=True) if k == CONTROL]
    )
    backend.add_tokens(
        [AddedToken(t, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == USER_DEFINED]
    )
    if backend.get_vocab_size() != len(tokens):
        raise ModelError(f"{len(tokens)} tokens are listed, some of them twice", where=where, do="Fetch it again")

    def named(role: str) -> str | None:
        number = metadata.get(f"tokenizer.ggml.{role}_token_id")
        return None if number is None else tokens[number]

    if metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):  # llama.cpp's default for Llama 3 alone
        _begin_with(backend, named("bos"), where)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=named("bos"),
        eos_token=named("eos"),
        pad_token=named("padding") or named("eos"),
        unk_token=named("unknown"),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=metadata[f"{metadata['general.architecture']}.context_length"],
        chat_template=metadata.get("tokenizer.chat_template"),
    )


def pre_tokenizer(name: str) -> PreTokenizer:
    """How a text is parted before merging, by llama.cpp's name for it."""
    from tokenizers import Regex, pre_tokenizers

    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":  # every digit apart, then as GPT-2
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    split = pre_tokenizers.Split(Regex(PATTERNS[name]), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _begin_with(backend: Any, bos: str | None, where: str) -> None:
    from tokenizers import processors

    if bos is None:
        raise ModelError("texts shall begin with a token that it does not name", where=where, do="Fetch it again")
    special = [(bos, backend.token_to_id(bos))]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=special
    )
