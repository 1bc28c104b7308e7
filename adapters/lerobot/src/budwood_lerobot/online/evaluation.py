"""Episodes of the current policy on environments of their own, with deterministic actions."""

from __future__ import annotations

import numpy as np

from budwood.api import Array, Evaluation
from budwood_lerobot.online.episodes import Episodes, Observer, episode_seed
from budwood_lerobot.online.neutral import Neutral
from budwood_lerobot.online.processors import Commands, Processors, tasks


def evaluate(
    episodes: Episodes,
    neutral: Neutral,
    processors: Processors,
    commands: Commands,
    count: int,
    seed: int,
    observer: Observer | None = None,
) -> Evaluation:
    """Play ``count`` episodes; their seeds follow from ``seed`` alone, whatever was played before.

    Environment ``i`` of ``n`` plays ``(count + i) // n`` of them, so that short episodes are not preferred.
    """
    n = episodes.n
    quota = (count + np.arange(n)) // n
    played = np.zeros(n, dtype=np.int64)
    returns: list[float] = []
    successes: list[float] = []
    lengths: list[int] = []
    steps = 0
    starting: Array = np.ones(n, dtype=bool)  # all, so that none is left in the middle of an older evaluation
    while (played < quota).any():
        if starting.any():
            episodes.begin(starting, [episode_seed(seed, row, int(played[row])) for row in range(n)])
            words = tasks(episodes)
        actions, _, _ = neutral.act(processors.observe(episodes.obs, words), deterministic=True)
        sent, _ = commands.checked(processors.command(neutral.chunk(actions)))
        counting = played < quota
        decision = episodes.decide(sent, counting, observer)
        steps += int(decision.steps.sum())
        for row in np.flatnonzero(decision.ended):
            returns.append(float(episodes.returns[row]))
            lengths.append(int(episodes.lengths[row]))
            successes.append(float(decision.successes[row]))
        played += decision.ended
        starting = decision.ended & (played < quota)
    metrics = {"success_rate": float(np.mean(successes))} if np.isfinite(successes).all() else {}
    return Evaluation(np.array(returns), np.array(lengths), steps, seed, metrics)
