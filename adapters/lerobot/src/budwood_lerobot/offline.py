"""Learning from a dataset, with LeRobot's own building blocks."""

from __future__ import annotations

from budwood.api import Capabilities, Seam

NAME = "lerobot offline"


def capabilities() -> Capabilities:
    """What an offline run can bind, and for everything else the reason it cannot."""
    rows = "it imitates the actions of a dataset: nothing is collected, and nothing is scored"
    words = "its policy acts on robots and writes no completions"
    seams = {
        "build_dataset": Seam("LeRobotDataset, before the policy is made"),
        "build_model": Seam("PreTrainedPolicy, before the optimiser is made"),
        "loss_terms": Seam("policy.forward, wrapped"),
        "callbacks": Seam("own loop: between two optimiser steps"),
        "evaluators": Seam("own loop: between two optimiser steps"),
    }
    refused = {
        "build_env": "its environments are LeRobot's: register an EnvConfig, and name its type in env.type",
        "build_policy": "a policy learns by its own forward(batch): trainer.policy names one, build_model brings or wraps it",
        "objective": "the objective is inside the policy's forward: add a loss term, or bring another policy",
        "rollout": words,
        "decoder": words,
        "completion_rewards": words,
        "completion_advantage": words,
        "reward_terms": rows,
        "reward_combination": rows,
        "advantage": rows,
    }
    return Capabilities(NAME, seams, refused, frozenset(("policy", "batch")))
