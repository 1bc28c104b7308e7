"""Learning from episodes: an on-policy loop over LeRobot's environments and any neutral policy."""

from __future__ import annotations

from budwood.api import Capabilities, Contributions, Run, Seam, Trainer

NAME = "lerobot online"

_CHUNKS = (
    "a decision executes several steps, and an episode may end inside: some environments then have no step while others do, "
    "and a reward term is promised a row for every environment; wrap the environment, or use Stable-Baselines3"
)
_WORDS = "it acts in environments and writes no completions"


LOSS_INPUTS = frozenset(
    ("obs", "actions", "log_prob", "old_log_prob", "advantages", "entropy", "clip_range", "policy", "share")
)
CRITIC_INPUTS = frozenset(("values", "old_values", "returns"))
"""What a loss sees beside with advantage: gae."""


def capabilities() -> Capabilities:
    """What a run can bind, and for everything else the reason it cannot."""
    seams = {
        "build_policy": Seam("own loop: the policy, or what wraps the one that trainer.policy loads"),
        "advantage": Seam("own loop: after a rollout"),
        "objective": Seam("own loop: the policy loss"),
        "loss_terms": Seam("own loop: added to the loss"),
        "callbacks": Seam("own loop: after rollouts and updates"),
        "evaluators": Seam("own loop: after updates"),
    }
    refused = {
        "build_env": "LeRobot makes its environments itself: register an EnvConfig, and name its type in env.type",
        "build_dataset": "it learns from episodes and reads no dataset",
        "build_model": "trainer.policy names LeRobot's policy, and build_policy wraps it",
        "reward_terms": _CHUNKS,
        "reward_combination": _CHUNKS,
        "rollout": _WORDS,
        "decoder": _WORDS,
        "completion_rewards": _WORDS,
        "completion_advantage": _WORDS,
    }
    return Capabilities(NAME, seams, refused, LOSS_INPUTS | CRITIC_INPUTS, rollouts=True, one_process="")


def build(run: Run, contributions: Contributions) -> Trainer:
    from budwood_lerobot.online.building import build as build_trainer

    return build_trainer(run, contributions)
