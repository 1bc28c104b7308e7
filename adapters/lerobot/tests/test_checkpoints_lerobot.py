"""What a run leaves behind is a checkpoint of LeRobot: its own tools load it, and act as the trained policy did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from robots import POLICIES, numbers, parameters, same
from safetensors.torch import load_file
from test_parity_lerobot import trained


def observation() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "observation.state": torch.rand(1, 2, generator=generator),
        "observation.image": torch.rand(1, 3, 48, 48, generator=generator),
        "task": [""],
    }


def actions(policy: Any, preprocessor: Any, postprocessor: Any, count: int = 3) -> torch.Tensor:
    policy.eval()
    policy.reset()
    torch.manual_seed(5)
    with torch.inference_mode():
        return torch.stack([postprocessor(policy.select_action(preprocessor(observation()))) for _ in range(count)])


@pytest.mark.parametrize("kind", POLICIES)
def test_lerobots_evaluation_loads_what_was_exported_and_acts_the_same(
    kind: str, trainer: Any, dataset: Path, tmp_path: Path
) -> None:
    from lerobot.common.train_utils import save_checkpoint
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.datasets import LeRobotDatasetMetadata
    from lerobot.policies import make_policy, make_pre_post_processors

    made = trainer(kind, steps=1)
    trained(made)
    path = made.export(tmp_path / "export")
    blocks = made.blocks
    config = PreTrainedConfig.from_pretrained(path)
    config.pretrained_path = path
    policy = make_policy(config, ds_meta=LeRobotDatasetMetadata("local/middle", root=dataset))
    processors = make_pre_post_processors(
        config, pretrained_path=str(path), preprocessor_overrides={"device_processor": {"device": "cpu"}}
    )
    assert same(parameters(policy), parameters(made.native))
    own = actions(made.native, blocks.preprocessor, blocks.postprocessor)
    assert torch.equal(actions(policy, *processors), own)
    assert own.abs().sum() > 0

    save_checkpoint(
        tmp_path / "theirs", 1, blocks.config, made.native, blocks.optimizer, blocks.scheduler,
        blocks.preprocessor, blocks.postprocessor,
    )  # fmt: skip
    theirs = tmp_path / "theirs" / "pretrained_model"
    assert {file.name: file.read_bytes() for file in path.iterdir()} == {
        file.name: file.read_bytes() for file in theirs.iterdir()
    }


def test_a_run_begins_from_an_exported_folder(trainer: Any, tmp_path: Path) -> None:
    made = trainer("act", steps=1)
    trained(made)
    path = made.export(tmp_path / "export")
    again = trainer({"path": str(path), "optimizer_lr": 5e-5}, steps=1)
    assert same(parameters(made.native), parameters(again.native))
    rows = [numbers(row) for _, row in trained(again).records]
    assert rows[0]["train/lr"] == 5e-5
    target = again.export(tmp_path / "again")
    assert json.loads((target / "config.json").read_text())["pretrained_path"] == str(path)
    assert not same(load_file(target / "model.safetensors"), load_file(path / "model.safetensors"))
