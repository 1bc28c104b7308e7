"""An evaluation as numbers to log, and as part of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from budwood.api import Evaluation

At = tuple[int, Evaluation]
"""Training steps, and what was measured then."""


def metrics(evaluation: Evaluation, env_steps: int) -> dict[str, float]:
    """Mean, spread and standard error of the returns; ``env_steps`` of the run so far, which curves are drawn over."""
    returns = evaluation.returns
    spread = float(returns.std(ddof=1)) if len(returns) > 1 else 0.0
    return {
        "eval/return_mean": float(returns.mean()),
        "eval/return_std": spread,
        "eval/return_se": spread / len(returns) ** 0.5,
        "eval/length_mean": float(evaluation.lengths.mean()),
        "eval/env_steps": float(env_steps),
        **{f"eval/{name}": float(value) for name, value in evaluation.metrics.items()},
    }


def saved(evaluations: Sequence[At]) -> list[dict[str, Any]]:
    return [
        {"step": step, "returns": e.returns, "lengths": e.lengths, "env_steps": e.env_steps, "seed": e.seed}
        | {"metrics": dict(e.metrics)}
        for step, e in evaluations
    ]


def loaded(saved: Sequence[dict[str, Any]]) -> list[At]:
    return [
        (e["step"], Evaluation(e["returns"], e["lengths"], e["env_steps"], e["seed"], e.get("metrics", {})))
        for e in saved
    ]
