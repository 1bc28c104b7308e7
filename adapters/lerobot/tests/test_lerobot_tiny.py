"""The tiny policies are LeRobot's own, train, and leave LeRobot's modules as they were."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lerobot")

from budwood_lerobot.testing import KINDS, tiny_batch, tiny_observation, tiny_pi, tiny_policy  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.mark.parametrize("kind", KINDS)
def test_trains_and_acts(kind, folder):
    state = torch.random.get_rng_state()
    policy, twin, other = (tiny_policy(kind, folder, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    weights, twins, others = (torch.cat([w.flatten() for w in p.parameters()]) for p in (policy, twin, other))
    assert torch.equal(weights, twins)
    assert not torch.equal(weights, others)
    assert policy.config.type == kind
    loss, _ = policy.train().forward(tiny_batch(policy, 3))
    loss.backward()
    assert any(w.grad is not None and w.grad.abs().sum() > 0 for w in policy.parameters())
    policy.eval()
    if kind != "pi0_fast":  # LeRobot refuses to decode what random weights write
        assert policy.select_action(tiny_observation(policy, 2)).shape == (2, 4)


def test_observation_reaches_the_action_of_the_dit(folder):
    policy = tiny_policy("multi_task_dit", folder)
    actions = []
    for seed in (1, 2):
        policy.reset()
        torch.manual_seed(0)
        actions.append(policy.select_action(tiny_observation(policy, 2, seed=seed)))
    assert (actions[0] - actions[1]).abs().max() > 1e-3


def test_sizes_and_hub_names_are_patched_only_inside(folder):
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.pi0 import modeling_pi0
    from lerobot.processor import tokenizer_processor

    before = {**vars(modeling_pi0)}, tokenizer_processor.AutoTokenizer
    policy = tiny_policy("pi0", folder)
    with tiny_pi(folder):
        assert modeling_pi0.get_gemma_config("gemma_2b").width == 64
        pre, _ = make_pre_post_processors(policy.config, dataset_stats=None)
    assert ({**vars(modeling_pi0)}, tokenizer_processor.AutoTokenizer) == before
    assert modeling_pi0.get_gemma_config("gemma_2b").width == 2048
    observation = {k: v[0] for k, v in tiny_observation(policy, 1).items() if "language" not in k}
    tokens = pre({**observation, "task": "push"})["observation.language.tokens"]
    assert tokens.shape == (1, policy.config.tokenizer_max_length)


def test_unknown_kind_is_named(folder):
    with pytest.raises(ValueError, match="no tiny policy of kind 'groot'"):
        tiny_policy("groot", folder)
