"""Speed and memory of `flow_vla` on LeRobot's policies at their whole size, with random weights: docs/methods/flow_rl/gpu.csv.

    python tests/benchmarks/flow_vla_speed.py --out docs/methods/flow_rl/gpu.csv       # a GPU of 80 GB, about 3 minutes
    python tests/benchmarks/flow_vla_speed.py --tiny --device cpu --out tiny.csv       # the same code on tiny policies

Of each policy and kernel: encoding and sampling of batches of observations, the log-probability replayed on the batch as
it was collected, and an update of one minibatch by the online loop's own code; and a step of cloning by the offline loop.
Seconds are medians after one call that warms up; GiB are the allocator's peak in that part. Nothing is downloaded: weights
are drawn in place. Parts can be chosen by name, and one that fails, for want of memory say, does not stop the others.
"""

from __future__ import annotations

import argparse
import csv
import gc
import importlib
import json
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pi0.modeling_pi0 import PI0Policy

import budwood
from budwood.api import Contributed, Contributions
from budwood_flow_rl.losses import FlowObjective
from budwood_flow_rl.vla.config import FlowVLAConfig
from budwood_flow_rl.vla.factory import FlowVLAFactory
from budwood_lerobot import testing
from budwood_lerobot.discs.__main__ import record
from budwood_lerobot.online.config import OnlineConfig
from budwood_lerobot.online.neutral import Neutral
from budwood_lerobot.online.samples import Samples
from budwood_lerobot.online.update import Update

K, GIB, RATE = 4, 2**30, 5e-6
COLUMNS = (
    *("device", "size", "policy", "dtype", "kernel", "what", "batch"),
    *("seconds", "peak_gib", "parameters_m", "trained_m", "note"),
)
KERNELS = {"flow_sde hybrid": {"name": "flow_sde", "level": 0.5}, "noisy_euler": {"name": "noisy_euler"}}
# SmolVLM2-500M: SmolLM2-360M, of whose 32 layers SmolVLA keeps 16, and SigLIP-B/16 at 512 x 512 with a pixel shuffle of 4
TEXT = {
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
    "head_dim": 64,
    "vocab_size": 49_280,
    "max_position_embeddings": 8192,
}
VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}
SMOLVLA = {
    "num_vlm_layers": 16,
    "expert_width_multiplier": 0.75,
    "resize_imgs_with_padding": [512, 512],
    "chunk_size": 50,
    "n_action_steps": 10,
    "max_state_dim": 32,
    "max_action_dim": 32,
    "num_steps": K,
}
TINY_SMOLVLA = {
    "num_vlm_layers": 2,
    "expert_width_multiplier": 0.5,
    "resize_imgs_with_padding": [64, 64],
    "chunk_size": 8,
    "n_action_steps": 8,
    "max_state_dim": 8,
    "max_action_dim": 8,
}


def features(side: int) -> dict[str, Any]:
    """Of an arm with seven joints and two cameras."""
    images = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, side, side)) for name in ("top", "wrist")
    }
    return {
        "input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (7,)), **images},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (7,))},
    }


@dataclass(frozen=True)
class Sizes:
    minibatch: int
    rollouts: tuple[int, int]
    cloned: int
    repeats: int


WHOLE, TINY = Sizes(32, (8, 32), 8, 5), Sizes(4, (2, 4), 2, 2)


class Bench:
    """Where it runs, at which sizes, and the rows that it writes."""

    def __init__(self, device: str, tiny: bool, work: Path, writer: Any) -> None:
        self.device, self.tiny, self.work, self.writer = device, tiny, work, writer
        self.cuda, self.sizes = device.startswith("cuda"), TINY if tiny else WHOLE
        self.name = torch.cuda.get_device_name() if self.cuda else "cpu"

    def row(self, **values: Any) -> None:
        self.writer.writerow({"device": self.name, "size": "tiny" if self.tiny else "full", **values})
        print(" ".join(f"{key}={value}" for key, value in values.items()), flush=True)

    def settle(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Peaks are of what comes after this."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float | str:
        return round(torch.cuda.max_memory_allocated() / GIB, 2) if self.cuda else ""

    def measured(self, work: Callable[[], object]) -> dict[str, Any]:
        """Columns of a part of its own."""
        self.forget()
        seconds = [self.seconds(work) for _ in range(1 + self.sizes.repeats)][1:]
        return {"seconds": round(statistics.median(seconds), 4), "peak_gib": self.peak()}

    def seconds(self, work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        self.settle()
        return time.perf_counter() - began


@contextmanager
def sizes_of_smolvlm() -> Iterator[None]:
    """The testing module writes the configuration of a VLM with the sizes of SmolVLM2-500M."""
    hub: Any = importlib.import_module("transformers")  # it puts another module in its place while it is imported
    original = hub.SmolVLMConfig

    def sized(*args: Any, **given: Any) -> Any:
        if "model_type" in given.get("text_config", ()):
            given["text_config"] = {**given["text_config"], **TEXT}
            given["vision_config"] = {**given["vision_config"], **VISION}
            given["scale_factor"] = 4
        return original(*args, **given)

    with patch.object(hub, "SmolVLMConfig", sized):
        yield


def vlm_of(bench: Bench) -> Path:
    with ExitStack() as stack:
        if not bench.tiny:
            stack.enter_context(sizes_of_smolvlm())
        return testing.tiny_smolvlm(bench.work / "vlm")


def smolvla(bench: Bench, dtype: str) -> Any:
    """``bf16``: the VLM, as LeRobot loads its own weights; the expert is in float32."""
    vlm_of(bench)
    settings = {"num_steps": K} if bench.tiny else {**SMOLVLA, "resize_imgs_with_padding": (512, 512), **features(256)}
    with torch.device(bench.device):
        policy: Any = testing.tiny_policy("smolvla", bench.work / "vlm", **settings)
    policy.config.device = bench.device
    if dtype == "bf16":
        policy.model.vlm_with_expert.vlm.to(torch.bfloat16)
    return policy.to(bench.device)


def pi0(bench: Bench, dtype: str) -> Any:
    name = {"bf16": "bfloat16", "fp32": "float32"}[dtype]
    if bench.tiny:
        return testing.tiny_policy("pi0", bench.work / "pi0", dtype=name, num_inference_steps=K).to(bench.device)
    arguments: Any = {
        "dtype": name,
        "num_inference_steps": K,
        "n_action_steps": 10,
        "device": bench.device,
        **features(224),
    }
    with torch.device(bench.device):
        return PI0Policy(PI0Policy.config_class(**arguments)).to(bench.device).eval()


def online(bench: Bench, kind: str, dtype: str) -> None:
    bench.forget()
    with ExitStack() as stack:
        if kind == "pi0" and bench.tiny:
            stack.enter_context(testing.tiny_pi(bench.work / "pi0"))
        began = time.perf_counter()
        policy = {"smolvla": smolvla, "pi0": pi0}[kind](bench, dtype)
        bench.settle()
        built = round(time.perf_counter() - began, 1)
        weights = list(policy.parameters())
        size = sum(w.numel() * w.element_size() for w in weights) / GIB
        common = {"policy": kind, "dtype": dtype, "parameters_m": round(sum(w.numel() for w in weights) / 1e6, 1)}
        bench.row(**common, what="build", seconds=built, peak_gib=bench.peak(), note=f"weights {size:.2f} GiB")
        for name, kernel in KERNELS.items():
            flow(bench, policy, kernel, {**common, "kernel": name})


def flow(bench: Bench, policy: Any, kernel: Mapping[str, Any], common: Mapping[str, Any]) -> None:
    config = FlowVLAConfig.model_validate({"kernel": kernel})
    factory = FlowVLAFactory(config)
    wrapped = factory.wrap(policy)
    neutral = Neutral(Contributed(factory, "flow_vla", __file__), wrapped, True)
    settings = OnlineConfig(
        kind="lerobot",
        algo="online",
        total_steps=1,
        minibatch=bench.sizes.minibatch,
        epochs=1,
        learning_rate=RATE,
        max_grad_norm=1.0,
    )
    objective = Contributed(FlowObjective(config).as_objective(), "flow_vla", __file__)
    update = Update(neutral, settings, Contributions(objective=objective), bench.device)
    trained = sum(w.numel() for group in update.groups for w in group["params"]) / 1e6
    common = {**common, "trained_m": round(trained, 1)}

    def seen(n: int) -> dict[str, torch.Tensor]:
        return {name: value.to(bench.device) for name, value in testing.tiny_observation(policy, n).items()}

    for n in bench.sizes.rollouts:
        o = seen(n)
        bench.row(**common, what="encode", batch=n, **bench.measured(torch.no_grad()(lambda o=o: wrapped.seen(o))))
        bench.row(**common, what=f"sample K={K}", batch=n, **bench.measured(lambda o=o: neutral.act(o)))
    rows = bench.sizes.minibatch
    o = seen(rows)
    actions, old, values = neutral.act(o)
    worst = float((neutral.evaluate(o, actions)[0].detach() - old).abs().max())
    bench.row(**common, what="replayed log-prob", batch=rows, note=f"worst difference {worst:.3g}")

    advantages = torch.randn(rows)
    on_cpu = {name: value.cpu() for name, value in o.items()}
    samples = Samples(on_cpu, actions.cpu(), old.cpu(), values.cpu(), advantages, values.cpu() + advantages)
    actor = update.groups[0]["params"]
    before = [w.detach().clone() for w in actor]
    generator = np.random.default_rng(0)
    found = bench.measured(lambda: update.run(samples, generator))
    moved = sum(int((old != new).sum()) for old, new in zip(before, actor, strict=True)) / sum(
        w.numel() for w in before
    )
    note = f"{moved:.1%} of the trained numbers differ after {1 + bench.sizes.repeats} updates at {RATE:.0e}"
    bench.row(**common, what="update minibatch", batch=rows, **found, note=note.replace("e-0", "e-"))


def cloning(bench: Bench) -> None:
    """SmolVLA from random weights, six steps on demonstrations of the discs, with the offline loop as it is."""
    vlm, data = vlm_of(bench), bench.work / "discs"
    record(data, 8)
    policy = {"type": "smolvla", "vlm_model_name": str(vlm), "load_vlm_weights": False}
    bench.forget()
    result = budwood.run(
        {
            "name": "cloning",
            "seed": 0,
            "device": "cuda" if bench.cuda else "cpu",
            "precision": "fp32",
            "output": str(bench.work / "runs"),
            "trainer": {
                "kind": "lerobot",
                "algo": "offline",
                "total_steps": 6,
                "policy": {**policy, **(TINY_SMOLVLA if bench.tiny else SMOLVLA)},
                "args": {"batch_size": bench.sizes.cloned, "num_workers": 0, "log_freq": 1},
            },
            "dataset": {"repo_id": "local/discs", "root": str(data)},
            "checkpoint": {"every": 1000, "keep": 1},
            "tracking": {"enabled": False},
        }
    )
    events = map(json.loads, Path(result.paths["events"]).read_text().splitlines())
    logged = [event["data"] for event in events if event["kind"] == "metrics"]
    seconds = [value for data in logged for name, value in data.items() if name.endswith("update_s")]
    losses = [round(data["train/loss"], 3) for data in logged if "train/loss" in data]
    bench.row(
        policy="smolvla",
        dtype="fp32",
        what="offline BC step",
        batch=bench.sizes.cloned,
        seconds=round(statistics.median(seconds[2:]), 4),
        peak_gib=bench.peak(),
        note=f"loss {losses}",
    )


PARTS: Mapping[str, Callable[[Bench], None]] = {
    "smolvla": lambda bench: online(bench, "smolvla", "fp32"),
    "pi0-bf16": lambda bench: online(bench, "pi0", "bf16"),
    "cloning": cloning,
    "smolvla-bf16": lambda bench: online(bench, "smolvla", "bf16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    failed = []
    with tempfile.TemporaryDirectory() as work, asked.out.open("w", newline="", buffering=1) as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        bench = Bench(asked.device, asked.tiny, Path(work), writer)
        for name in asked.parts or PARTS:
            try:
                PARTS[name](bench)
            except RuntimeError:  # out of memory is one
                failed.append(name)
                traceback.print_exc()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
