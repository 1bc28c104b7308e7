"""The plugin's part of the report: what the policy earns with noise and without, and how far each update moved it."""

from __future__ import annotations

from collections.abc import Iterable

from budwood.api import Figure, History, ReportSection, Series
from budwood_flow_rl.callback import PLUGIN
from budwood_flow_rl.config import FlowConfig

DECISIONS = "decisions (chunks)"


def sections(config: FlowConfig, history: History) -> list[ReportSection]:
    """One section if the run had an iteration, else none."""
    if f"{PLUGIN}/env_steps" not in history:
        return []
    figures = [figure for figure in _figures(config, history) if figure.series]
    return [ReportSection("Flow policy", tuple(_text(config, history)), figures, [_seconds(history)])]


def _figures(config: FlowConfig, history: History) -> Iterable[Figure]:
    returns = _lines(
        history, {"eval/return_mean": "without noise, evaluation", "rollout/ep_rew_mean": "with noise, training"}
    )
    yield Figure("Return with noise and without", DECISIONS, "sum of the environment's own reward", returns)
    yield Figure("Noise of each step", DECISIONS, "standard deviation, normalised actions", _sigmas(config, history))
    yield Figure(
        "Joint KL of an update", DECISIONS, "nats a chunk", _own(history, {"joint_kl": "mean over minibatches"})
    )
    shares = {"clip_fraction": "ratios clipped", "saturation": "executed actions beyond bounds"}
    yield Figure("Clipping", DECISIONS, "share", _own(history, shares))
    yield Figure(
        "Critic", DECISIONS, "explained variance", _lines(history, {"train/explained_variance": "of the returns"})
    )
    seconds = {f"cpu/{part}": part for part in ("physics", "sampling", "update")}
    yield Figure("CPU time of an iteration", DECISIONS, "seconds", _own(history, seconds))


def _lines(history: History, names: dict[str, str]) -> list[Series]:
    return [Series(label, *history[name]) for name, label in names.items() if name in history]


def _own(history: History, names: dict[str, str]) -> list[Series]:
    return _lines(history, {f"{PLUGIN}/{name}": label for name, label in names.items()})


def _sigmas(config: FlowConfig, history: History) -> list[Series]:
    return _own(history, {f"sigma/step_{k}": f"step {k}" for k in range(config.steps)})


def _text(config: FlowConfig, history: History) -> Iterable[str]:
    steps, counted = history[f"{PLUGIN}/env_steps"]
    yield (
        f"{int(counted[-1]):,} environment steps in {steps[-1]:,} decisions; the trainer, its total_timesteps and the axes "
        "below count decisions, each a chunk of actions."
    )
    if config.init is None:
        yield "The flow started from random weights."
    if config.eval.film:
        yield "An episode before training and one after it are beside this page: rollout_before.gif, rollout_after.gif."
    if "eval/return_mean" in history:
        _, returns = history["eval/return_mean"]
        yield f"Without noise the first evaluation earned {returns[0]:.4g} and the last {returns[-1]:.4g}."
    if f"{PLUGIN}/first_ratio_worst" in history:
        _, worst = history[f"{PLUGIN}/first_ratio_worst"]
        yield (
            f"Before a parameter had moved, recomputed probabilities differed from the stored ones by at most "
            f"{max(worst):.1e}: stored and recomputed chains are scored alike."
        )


def _seconds(history: History) -> dict[str, object]:
    """Sums over the run."""
    spent = {part: sum(history[f"{PLUGIN}/cpu/{part}"][1]) for part in ("physics", "sampling", "update")}
    return {f"{part}, CPU seconds": f"{seconds:.1f}" for part, seconds in spent.items()}
