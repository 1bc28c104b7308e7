"""``python -m budwood_isaac [TASK]``: what is installed here; with a task, its reward terms under the author's weights."""

from __future__ import annotations

import sys
from importlib import metadata

from budwood.api import BudwoodError


def main(words: list[str]) -> int:
    for line in status():
        print(line)
    if not words:
        return 0
    try:
        print(oracle(words[0]))
    except BudwoodError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def status() -> list[str]:
    """One line a package; nothing of it is imported, and no licence is asked for."""
    uses = {"isaaclab": "tasks", "isaacsim": "Isaac Sim, for PhysX and RTX", "newton": "physics without Isaac Sim"}
    return [f"{name}: {_version(name)} ({use})" for name, use in uses.items()]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def oracle(task: str) -> str:
    """The lines of ``plugins.reward_shaping`` under which the shaped reward is the author's."""
    from budwood_isaac.packs import pack
    from budwood_isaac.tasks import author_weights, load, missing

    if (error := missing()) is not None:
        raise error
    weights = author_weights(load(task))
    if weights is None:
        return f"{task} has no reward manager (direct workflow): its terms have to be functions of your own"
    initial = pack(weights).author_weights
    inside = ", ".join(f"{name}: {weight:g}" for name, weight in initial.items())
    low, high = min(initial.values()), max(initial.values())
    silent = [name for name, weight in weights.items() if weight == 0.0]
    return "\n".join(
        [
            f"terms: [{', '.join(initial)}]",
            f"weights: {{w_task: 0.0, scale: null, bounds: [{low / 10:g}, {high * 10:g}], initial: {{{inside}}}}}",
            *([f"# left at 0 by the author: {', '.join(silent)}"] if silent else []),
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
