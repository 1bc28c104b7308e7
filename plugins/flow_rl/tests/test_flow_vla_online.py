"""Whole runs of flow_vla in LeRobot's online loop: a tiny smolvla on PushT, with pictures."""

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("lerobot")

import budwood
from budwood_lerobot.testing import tiny_smolvlm


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["noisy_euler", "flow_sde"])
def test_smolvla_learns_from_episodes_and_lerobot_loads_it(kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    tiny = {"num_vlm_layers": 2, "expert_width_multiplier": 0.5, "max_state_dim": 8, "max_action_dim": 8}
    images = {"resize_imgs_with_padding": [64, 64], "tokenizer_max_length": 48, "pad_language_to": "max_length"}
    policy = {
        "type": "smolvla",
        "vlm_model_name": str(tiny_smolvlm(tmp_path)),
        "load_vlm_weights": False,
        **tiny,
        **images,
        "chunk_size": 8,
        "n_action_steps": 4,
        "num_steps": 4,
    }
    result = budwood.run(
        {
            "name": "flow-vla",
            "seed": 0,
            "device": "cpu",
            "output": str(tmp_path / "out"),
            "trainer": {
                "kind": "lerobot",
                "algo": "online",
                "policy": policy,
                "total_steps": 24,
                "rollout": 4,
                "epochs": 2,
                "minibatch": 4,
                "critic_warmup": 1,
            },
            "env": {"type": "pusht", "n_envs": 2, "episode_length": 30},
            "plugins": {"flow_vla": {"kernel": {"name": kernel}}},
            "tracking": {"enabled": False},
        }
    )
    rows = [json.loads(line) for line in (Path(result.paths["folder"]) / "events.jsonl").read_text().splitlines()]
    logged = [row["data"] for row in rows if row["kind"] == "metrics"]
    ratios = [row["flow_vla/first_ratio_worst"] for row in logged if "flow_vla/first_ratio_worst" in row]
    assert len(ratios) == 2  # of three updates one moved the critic alone
    assert max(ratios) <= 1e-4  # minibatches are other splits than what was collected
    assert all(row["flow_vla/joint_kl"] > 0 for row in logged if "flow_vla/joint_kl" in row)
    sigma = [row["flow_vla/sigma/step_0"] for row in logged if "flow_vla/sigma/step_0" in row]
    expected = {"noisy_euler": (0.08, 0.16), "flow_sde": (0.5 - 1e-6, 0.5 + 1e-6)}[kernel]
    assert len(sigma) == 3
    assert all(expected[0] < value < expected[1] for value in sigma)
    assert all(math.isfinite(value) for row in logged for name, value in row.items() if "flow_vla" in name)

    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    exported = SmolVLAPolicy.from_pretrained(result.paths["native"])
    assert exported.config.num_steps == 4
