"""Peak memory of SmolLM2-135M in GRPO, as ``configs/trl/grpo.yaml`` has it: the whole process, with its checkpoint and export.

    OMP_NUM_THREADS=1 python tests/benchmarks/trl_memory.py               # about 2 minutes
    OMP_NUM_THREADS=1 python tests/benchmarks/trl_memory.py --lora        # with an adapter of rank 8

Run from the root of the repository. Printed: the largest resident set of the process after a run of two optimiser steps.
"""

from __future__ import annotations

import argparse
import resource
import tempfile

import budwood


def peak() -> float:
    """MiB; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", action="store_true", help="train an adapter of rank 8 in place of all parameters")
    lora = parser.parse_args().lora
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            "trainer.total_steps=2",
            "checkpoint.every=2",
            "tracking.enabled=false",
            "device=cpu",
            f"output={folder}",
        ]
        if lora:
            settings.append("trainer.peft={r: 8, lora_alpha: 16, target_modules: [q_proj, v_proj]}")
        budwood.run("configs/trl/grpo.yaml", settings)
    print(f"two steps of GRPO: {peak():.0f} MiB")


if __name__ == "__main__":
    main()
