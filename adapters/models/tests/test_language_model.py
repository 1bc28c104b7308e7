"""Loading by folder, file, short name and id; conversion, caching, saving; what errors say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from budwood_models import ModelError, load_language_model
from budwood_models.cache import MANIFEST, cache_folder, is_whole
from budwood_models.digests import digest_tokenizer, digest_weights

CONVERT = """
import sys
from pathlib import Path
from budwood_models.conversion import converted
print(converted(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def logits(language_model, text="hello there"):
    import torch

    with torch.inference_mode():
        return language_model.model(**language_model.tokenizer(text, return_tensors="pt")).logits


def test_gguf_gives_the_model_it_was_written_from(gguf_file, tiny, tmp_path):
    import torch

    loaded = load_language_model(gguf_file, cache=tmp_path)
    torch.testing.assert_close(logits(loaded), logits(tiny), rtol=0, atol=1e-6)
    config = loaded.model.generation_config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 1)
    assert digest_tokenizer(loaded.tokenizer) == digest_tokenizer(load_language_model(loaded.source).tokenizer)


def test_converted_once_and_noted(gguf_file, tmp_path):
    source = Path(load_language_model(gguf_file, cache=tmp_path).source)
    facts = json.loads((source / MANIFEST).read_text())
    assert facts["source"] == "tiny.gguf"
    assert len(facts["sha256"]) == 64
    assert set(facts["versions"]) == {"gguf", "tokenizers", "torch", "transformers"}
    before = (source / "model.safetensors").stat().st_mtime_ns
    assert load_language_model(gguf_file, cache=tmp_path).source == str(source)
    assert (source / "model.safetensors").stat().st_mtime_ns == before


def test_a_damaged_conversion_is_made_again(gguf_file, tiny, tmp_path):
    import torch

    source = Path(load_language_model(gguf_file, cache=tmp_path).source)
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert not is_whole(source)
    again = load_language_model(gguf_file, cache=tmp_path)
    assert is_whole(source)
    torch.testing.assert_close(logits(again), logits(tiny), rtol=0, atol=1e-6)


def test_a_conversion_that_fails_leaves_nothing(tmp_path, gguf_file):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf_file.read_bytes()[:200])
    with pytest.raises(ModelError, match="no readable GGUF") as caught:
        load_language_model(cut, cache=tmp_path / "cache")
    assert str(cut) in str(caught.value)
    assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] in ([], [".lock"])


@pytest.mark.slow
def test_two_processes_convert_once(gguf_file, tmp_path):
    command = [sys.executable, "-c", CONVERT, str(gguf_file), str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    folders = {out.strip() for out, _ in said}
    assert len(folders) == 1
    assert is_whole(Path(folders.pop()))


def test_saved_and_loaded_again_is_the_same(tiny, tmp_path):
    again = load_language_model(tiny.save(tmp_path / "copy"))
    assert digest_weights(again.model) == digest_weights(tiny.model)
    assert digest_tokenizer(again.tokenizer) == digest_tokenizer(tiny.tokenizer)
    assert again.tokenizer.padding_side == "left"
    assert again.source == str(tmp_path / "copy")


def test_digests_see_one_bit(tiny):
    import torch

    before = digest_weights(tiny.model)
    weight = tiny.model.model.norm.weight
    with torch.no_grad():
        weight[3] += 1e-6
        assert digest_weights(tiny.model) != before
        weight[3] = 1.0
    assert digest_weights(tiny.model) == before
    assert digest_weights(tiny.model.to(torch.bfloat16)) != before
    tiny.model.to(torch.float32)


def test_a_dtype(tiny, tmp_path):
    folder = tiny.save(tmp_path / "copy")
    assert str(load_language_model(folder, dtype="bfloat16").model.dtype) == "torch.bfloat16"
    with pytest.raises(ModelError, match="no dtype 'float8'"):
        load_language_model(folder, dtype="float8")


def test_ids_past_the_embeddings_are_refused(tiny, tmp_path):
    folder = tiny.save(tmp_path / "copy")
    tiny_tokenizer = load_language_model(folder).tokenizer
    tiny_tokenizer.add_tokens(["<|extra|>"])
    tiny_tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="262 ids for 261 embeddings"):
        load_language_model(folder)


def test_weights_that_are_missing_are_no_random_numbers(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny.save(tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are not in it.*up_proj"):
        load_language_model(folder)


def test_pickled_weights_are_refused(tiny, tmp_path):
    import torch

    folder = tiny.save(tmp_path / "copy")
    torch.save(tiny.model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_language_model(folder)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nowhere", ["./nowhere", "no such folder or file"]),
        ("someone/some-model", ["hf download someone/some-model", "HF_HUB_OFFLINE is set", "'smollm2'"]),
        ("minilm", ["'minilm' is of the kind encoder", "'smollm2'"]),
    ],
)
def test_what_is_missing_is_said_with_how_to_get_it(name, says):
    with pytest.raises(ModelError) as caught:
        load_language_model(name)
    assert [words for words in says if words not in str(caught.value)] == []


def test_a_package_that_is_not_installed(monkeypatch):
    from budwood_models import packaged

    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r'pip install "budwood-models\[smollm2\]"'):
        load_language_model("smollm2")


def test_an_empty_folder_and_a_wrong_file(tmp_path):
    with pytest.raises(ModelError, match="cannot be read") as caught:
        load_language_model(tmp_path)
    assert "safetensors" in str(caught.value)
    (tmp_path / "model.bin").write_text("")
    with pytest.raises(ModelError, match="no GGUF file"):
        load_language_model(tmp_path / "model.bin")


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("BUDWOOD_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("BUDWOOD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "budwood"


def test_importing_imports_no_model_library():
    heavy = ("torch", "transformers", "tokenizers", "httpx", "onnxruntime", "sentence_transformers")
    code = f"import sys, budwood_models; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
