"""Vision-language-action policies, tiny: a run trains them as LeRobot's own loop does, goes on exactly, and is exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from robots import numbers, parameters, same
from test_checkpoints_lerobot import actions, observation
from test_parity_lerobot import bare, trained

from budwood_lerobot.testing import tiny_pi, tiny_smolvlm

STEPS = 2
CHUNK = {"chunk_size": 4, "n_action_steps": 4}
PADDED = {"max_state_dim": 8, "max_action_dim": 8}
PI = {**CHUNK, "dtype": "float32"}


@pytest.fixture(params=["smolvla", "pi0", "pi05", "pi0_fast"])
def policy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The section ``trainer.policy`` of a tiny one; the pi family is tiny as long as the test runs."""
    kind, folder = request.param, tmp_path / "tiny"
    folder.mkdir()
    settings: dict[str, Any]
    if kind == "smolvla":
        images = {"resize_imgs_with_padding": [64, 64], "tokenizer_max_length": 48}
        vlm = {"vlm_model_name": str(tiny_smolvlm(folder)), "load_vlm_weights": False, "num_vlm_layers": 2}
        settings = {**CHUNK, **PADDED, **images, **vlm, "num_steps": 2, "expert_width_multiplier": 0.5}
    elif kind == "pi0_fast":
        settings = {**PI, "text_tokenizer_name": str(folder)}
    else:
        sizes = {"image_resolution": [56, 56], "tokenizer_max_length": 96, "num_inference_steps": 2}
        settings = {**PI, **PADDED, **sizes}
    with nullcontext() if kind == "smolvla" else tiny_pi(folder):
        yield {"type": kind, **settings}


def test_a_run_is_lerobots_own_loop_and_leaves_what_acts_the_same(
    policy: dict[str, Any], trainer: Any, dataset: Path, tmp_path: Path
) -> None:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.datasets import LeRobotDatasetMetadata
    from lerobot.policies import make_policy, make_pre_post_processors

    made = trainer(policy, steps=STEPS)
    before = parameters(made.native)
    memory = trained(made)
    own, history = bare(policy, dataset, STEPS)
    assert [numbers(row) for _, row in memory.records] == [numbers(row) for row in history]
    assert same(parameters(made.native), parameters(own))
    assert not same(parameters(made.native), before)

    path = made.export(tmp_path / "export")
    config = PreTrainedConfig.from_pretrained(path)
    config.pretrained_path = path
    loaded = make_policy(config, ds_meta=LeRobotDatasetMetadata("local/middle", root=dataset))
    assert same(parameters(loaded), parameters(made.native))
    processors = make_pre_post_processors(config, pretrained_path=str(path))
    seen, own_seen = (processor(observation()) for processor in (processors[0], made.blocks.preprocessor))
    assert seen.keys() == own_seen.keys()
    tensors = [name for name, value in own_seen.items() if isinstance(value, torch.Tensor)]
    assert {"observation.language.tokens", "observation.state"} <= set(tensors)
    assert all(torch.equal(seen[name], own_seen[name]) for name in tensors)
    normalised = torch.tensor([[0.5, -0.5]])
    scaled, own_scaled = (processor(normalised) for processor in (processors[1], made.blocks.postprocessor))
    assert torch.equal(scaled, own_scaled)
    assert not torch.equal(scaled, normalised)
    if policy["type"] != "pi0_fast":  # LeRobot refuses to decode what random weights write
        acted = actions(made.native, made.blocks.preprocessor, made.blocks.postprocessor)
        assert torch.equal(actions(loaded, *processors), acted)
