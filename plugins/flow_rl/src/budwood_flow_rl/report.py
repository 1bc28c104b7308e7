"""The plugins' part of the report: what the policy earns with noise and without, and how far each update moved it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count, takewhile

from budwood.api import Figure, History, Picture, ReportSection, Series
from budwood_flow_rl.callback import PLUGIN
from budwood_flow_rl.config import FlowConfig

DECISIONS = "decisions (chunks)"


@dataclass(frozen=True)
class Names:
    """Under which names a run logs what is drawn. ``own`` is the plugin's prefix, ``total`` the trainer's word for its
    length, ``frame`` what each frame of a film follows, ``cpu`` has a place for one of ``PARTS``."""

    own: str
    total: str
    frame: str
    env_steps: str
    with_noise: str
    beyond: str
    cpu: str


PARTS = ("physics", "sampling", "update")
SB3 = Names(
    PLUGIN,
    total="total_timesteps",
    frame="decision",
    env_steps=f"{PLUGIN}/env_steps",
    with_noise="rollout/ep_rew_mean",
    beyond=f"{PLUGIN}/saturation",
    cpu=f"{PLUGIN}/cpu/{{}}",
)
LEROBOT = Names(
    "flow_vla",
    total="total_steps",
    frame="step of the environment",
    env_steps="rollout/env_steps",
    with_noise="rollout/return_mean",
    beyond="rollout/outside_bounds",
    cpu="time/{}_cpu",
)


def sections(config: FlowConfig, history: History, films: Sequence[Picture] = ()) -> list[ReportSection]:
    """One section if the run had an iteration, else none."""
    notes = []
    if config.init is None:
        notes.append("The flow started from random weights.")
    return drawn(SB3, notes, history, films)


def drawn(names: Names, notes: Iterable[str], history: History, films: Sequence[Picture] = ()) -> list[ReportSection]:
    """The section of any trainer, with ``notes`` on the start; none if the run had no iteration."""
    if names.env_steps not in history:
        return []
    figures = [figure for figure in _figures(names, history) if figure.series]
    if films:
        notes = [
            *notes,
            f"The episodes shown are without noise, a frame a {names.frame}, and fewer of long ones; they are GIFs in the "
            "run's folder too.",
        ]
    text, seconds = tuple(_text(names, notes, history)), [_seconds(names, history)]
    return [ReportSection("Flow policy", text, figures, seconds, films)]


def _figures(names: Names, history: History) -> Iterable[Figure]:
    returns = {"eval/return_mean": "without noise, evaluation", names.with_noise: "with noise, training"}
    yield Figure(
        "Return with noise and without", DECISIONS, "sum of the environment's own reward", _lines(history, returns)
    )
    yield Figure("Noise of each step", DECISIONS, "standard deviation, normalised actions", _sigmas(names, history))
    moved = {f"{names.own}/joint_kl": "mean over minibatches"}
    yield Figure("Joint KL of an update", DECISIONS, "nats a chunk", _lines(history, moved))
    shares = {f"{names.own}/clip_fraction": "ratios clipped", names.beyond: "executed actions beyond bounds"}
    yield Figure("Clipping", DECISIONS, "share", _lines(history, shares))
    yield Figure(
        "Critic", DECISIONS, "explained variance", _lines(history, {"train/explained_variance": "of the returns"})
    )
    seconds = {names.cpu.format(part): part for part in PARTS}
    yield Figure("CPU time of an iteration", DECISIONS, "seconds", _lines(history, seconds))


def _lines(history: History, names: dict[str, str]) -> list[Series]:
    return [Series(label, *history[name]) for name, label in names.items() if name in history]


def _sigmas(names: Names, history: History) -> list[Series]:
    steps = takewhile(lambda k: f"{names.own}/sigma/step_{k}" in history, count())
    return _lines(history, {f"{names.own}/sigma/step_{k}": f"step {k}" for k in steps})


def _text(names: Names, notes: Iterable[str], history: History) -> Iterable[str]:
    steps, counted = history[names.env_steps]
    yield (
        f"{int(counted[-1]):,} environment steps in {steps[-1]:,} decisions; the trainer, its {names.total} and the axes "
        "below count decisions, each a chunk of actions."
    )
    yield from notes
    if "eval/return_mean" in history:
        _, returns = history["eval/return_mean"]
        yield f"Without noise the first evaluation earned {returns[0]:.4g} and the last {returns[-1]:.4g}."
    if f"{names.own}/first_ratio_worst" in history:
        _, worst = history[f"{names.own}/first_ratio_worst"]
        yield (
            f"Before a parameter had moved, recomputed probabilities differed from the stored ones by at most "
            f"{max(worst):.1e}: stored and recomputed chains are scored alike."
        )


def _seconds(names: Names, history: History) -> dict[str, object]:
    """Sums over the run."""
    spent = {part: sum(history[names.cpu.format(part)][1]) for part in PARTS}
    return {f"{part}, CPU seconds": f"{seconds:.1f}" for part, seconds in spent.items()}
