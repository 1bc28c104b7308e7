"""Replies of a model in this process: against transformers' own generation, against the softmax, against company."""

from __future__ import annotations

import pytest

from budwood_models import Generator, LocalGenerator, ModelError, load_language_model
from budwood_models.language_model import LanguageModel
from budwood_models.local import row_seed, upto_end


def ask(text):
    return [{"role": "user", "content": text}]


ASKED = [ask(text) for text in ("hello", "what?", "h", "three small words", "1 2 3", "zzzz")]


def test_greedy_is_transformers_own_one_at_a_time(tiny):
    generator = LocalGenerator(tiny, batch_size=4)
    assert isinstance(generator, Generator)
    replies = generator.generate(ASKED, max_tokens=12)
    for prompt, reply in zip(ASKED, replies, strict=True):
        ids = tiny.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        alone = tiny.model.generate(ids, attention_mask=ids * 0 + 1, max_new_tokens=12, do_sample=False)[
            0, ids.shape[1] :
        ]
        assert reply.text == tiny.tokenizer.decode(alone, skip_special_tokens=True)
        assert (reply.prompt_tokens, reply.completion_tokens) == (ids.shape[1], len(alone))
        assert reply.truncated == (1 not in alone.tolist())


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_company_does_not_change_a_reply(tiny, temperature):
    options = {"max_tokens": 10, "temperature": temperature, "seed": 5}
    together = LocalGenerator(tiny, batch_size=6).generate(ASKED, **options)
    alone = [LocalGenerator(tiny, batch_size=1).generate([prompt], **options)[0] for prompt in ASKED]
    backwards = LocalGenerator(tiny, batch_size=2).generate(ASKED[::-1], **options)[::-1]
    assert together == alone == backwards


def test_samples_have_the_models_probabilities(tiny):
    """4,000 first tokens against softmax(logits / T), by total variation."""
    import torch

    n, temperature = 4000, 2.0
    generator = LocalGenerator(tiny, batch_size=500)
    prompt = ask("hello")
    ids = tiny.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        p = torch.softmax(tiny.model(ids).logits[0, -1] / temperature, -1)
    from budwood_models.local import gumbel

    processor = gumbel(temperature, [row_seed(0, ids[0].tolist(), copy) for copy in range(n)])
    scores = torch.log(p).mul(temperature).expand(n, -1)
    counts = torch.bincount(processor(ids, scores).argmax(-1), minlength=len(p)) / n
    distance = (counts - p).abs().sum().item() / 2
    expected = (2 / torch.pi * p * (1 - p) / n).sqrt().sum().item() / 2  # of exact samples, on average
    assert 0.8 * expected < distance < 1.2 * expected
    assert generator.generate([prompt] * 3, max_tokens=8, temperature=2.0) != generator.generate(
        [prompt] * 3, max_tokens=8, temperature=2.0, seed=1
    )


def test_copies_are_sampled_apart_and_again_alike(tiny):
    generator = LocalGenerator(tiny)
    replies = generator.generate([ask("hello")] * 6, max_tokens=10, temperature=1.0)
    assert len({reply.text for reply in replies}) > 3
    assert replies == generator.generate([ask("hello")] * 6, max_tokens=10, temperature=1.0)
    assert replies[:2] == generator.generate([ask("hello")] * 2, max_tokens=10, temperature=1.0)


def test_every_conversation_and_every_copy_has_noise_of_its_own():
    seeds = {row_seed(seed, ids, copy) for seed in (0, 1) for ids in ([1, 2], [12], [1, 2, 3]) for copy in (0, 1)}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_prompt_that_does_not_fit_is_named(tiny):
    with pytest.raises(ModelError) as caught:
        LocalGenerator(tiny).generate([ask("hi"), ask("long " * 30)], max_tokens=4)
    said = str(caught.value)
    assert "prompt 1 ('long long" in said
    assert "more than the 64 that tiny can hold" in said


def test_without_a_chat_template_it_is_refused(tiny, metadata):
    from budwood_models.gguf_tokenizer import build_tokenizer

    bare = build_tokenizer({k: v for k, v in metadata.items() if k != "tokenizer.chat_template"}, "bare")
    with pytest.raises(ModelError, match="no chat template"):
        LocalGenerator(LanguageModel(tiny.model, bare, "bare"))


def test_no_prompts_and_the_mode_of_the_model(tiny):
    tiny.model.train()
    try:
        assert LocalGenerator(tiny).generate([], max_tokens=3) == []
        LocalGenerator(tiny).generate([ask("hi")], max_tokens=3)
        assert tiny.model.training
    finally:
        tiny.model.eval()


def test_end_tokens():
    assert upto_end([5, 6, 1, 1, 9], {1, 9}) == ([5, 6, 1], False)
    assert upto_end([5, 6], {1}) == ([5, 6], True)
    assert upto_end([], {1}) == ([], True)


def test_identity_tells_models_and_templates_apart(tiny):
    import json

    plain, thinking = LocalGenerator(tiny), LocalGenerator(tiny, template={"enable_thinking": True})
    assert json.loads(json.dumps(plain.identity)) == plain.identity
    assert plain.identity != thinking.identity
    assert plain.identity == LocalGenerator(tiny, batch_size=3).identity


@pytest.mark.parametrize(
    ("which", "change"),
    [
        ("config", {"rms_norm_eps": 0.1}),
        ("config", {"hidden_act": "relu"}),
        ("generation_config", {"eos_token_id": [1, 5]}),
    ],
)
def test_identity_tells_configurations_apart(tiny, tmp_path, which, change):
    """The same weights and tokenizer, but replies may differ; where a model lies makes no difference."""
    copies = [load_language_model(tiny.save(tmp_path / name)) for name in ("one", "two")]
    plain = LocalGenerator(copies[0]).identity
    assert plain == LocalGenerator(copies[1]).identity
    for name, value in change.items():
        setattr(getattr(copies[1].model, which), name, value)
    changed = LocalGenerator(copies[1]).identity
    assert {name for name in plain if plain[name] != changed[name]} == {"config"}


def test_smollm2_answers_and_stops(smollm2):
    generator = LocalGenerator(smollm2)
    prompts = [ask("What is the capital of France? Answer in one sentence."), ask("Count from one to ten in words.")]
    france, count = generator.generate(prompts, max_tokens=12)
    assert france.text == "The capital of France is Paris."
    assert (france.truncated, france.completion_tokens) == (False, 8)
    assert count.truncated
    assert generator.generate(prompts[:1], max_tokens=12) == [france]
