"""The plugin's part of the report, from what was logged and the samples that the run left."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from budwood.api import Figure, History, ReportSection, Run, Series
from budwood_lcqa_selector.config import SelectorConfig
from budwood_lcqa_selector.following import SAMPLES_FILE
from budwood_lcqa_selector.parsing import MALFORMED
from budwood_lcqa_selector.scoring import PREFIX

STEPS = "optimiser steps"
TRAIN = "train/"
"""What the adapter puts before the numbers of training."""
FLAT = 0.6
"""Part of groups without spread from which on training is told to be starved."""

Points = tuple[Sequence[int], Sequence[float]]


def sections(run: Run, history: History) -> list[ReportSection]:
    training = {name.removeprefix(TRAIN): points for name, points in history.items()}
    shown = {name.removeprefix(PREFIX): points for name, points in training.items() if name.startswith(PREFIX)}
    if "coverage" not in shown:
        return []
    config: SelectorConfig = run.section
    stages = _stage_at(shown)
    switches = [int(step) for step in dict.fromkeys(shown.get("switched", ((), ()))[1])]
    figures = [
        _by_stage("Reward", "mean reward", training.get("reward", ((), ())), stages, config, switches),
        _against_size(shown, stages, config),
        _by_stage("Passages picked", "mean size", shown["size"], stages, config, switches),
        Figure(
            "Coverage of the evidence", STEPS, "part covered, valid answers", [Series("training", *shown["coverage"])]
        ),
        Figure("Tokens kept", STEPS, "part of the pool's tokens", [Series("training", *shown["kept_tokens"])]),
        _malformed(shown),
    ]
    made = [
        ReportSection("Evidence picking", _text(training, shown, config, switches), [f for f in figures if f.series])
    ]
    if samples := _samples(run):
        made.append(
            ReportSection(
                "Picks for sample questions",
                [
                    "The last answers to some evaluation questions. Ids are those of the prompt, shuffled for every question."
                ],
                table=samples,
            )
        )
    return made


def _stage_at(shown: Mapping[str, Points]) -> dict[int, int]:
    """Step -> stage of the rows scored then; what was fetched ahead counts with the stage it carries."""
    return {step: round(value) for step, value in zip(*shown.get("stage", ((), ())), strict=True)}


def _by_stage(
    title: str,
    label: str,
    points: Points,
    stages: Mapping[int, int],
    config: SelectorConfig,
    switches: Sequence[int],
) -> Figure:
    """One line a stage, so that numbers that cannot be compared are not joined, and a bar at every switch."""
    series = []
    for index, stage in enumerate(config.stages):
        own = [(step, value) for step, value in zip(*points, strict=True) if stages.get(step, 0) == index]
        if own:
            series.append(Series(f"stage {stage.name}", [step for step, _ in own], [value for _, value in own]))
    values = points[1]
    if values and series:
        low, high = min(values), max(values)
        series += [Series(f"switch at {step:,}", [step, step], [low, high]) for step in switches]
    return Figure(title, STEPS, label, series)


def _against_size(shown: Mapping[str, Points], stages: Mapping[int, int], config: SelectorConfig) -> Figure:
    size = dict(zip(*shown["size"], strict=True))
    series = []
    for index, stage in enumerate(config.stages):
        own = [
            (size[step], value)
            for step, value in zip(*shown["coverage"], strict=True)
            if step in size and stages.get(step, 0) == index
        ]
        if own:
            series.append(Series(f"stage {stage.name}", [x for x, _ in own], [y for _, y in own], "points"))
    return Figure("Coverage against set size", "mean passages picked", "part of the evidence covered", series)


def _malformed(shown: Mapping[str, Points]) -> Figure:
    kinds = [kind for kind in MALFORMED if any(shown.get(f"invalid/{kind}", ((), ()))[1])]
    return Figure("Malformed answers", STEPS, "part of answers", [Series(k, *shown[f"invalid/{k}"]) for k in kinds])


def _text(
    training: History, shown: Mapping[str, Points], config: SelectorConfig, switches: Sequence[int]
) -> tuple[str, ...]:
    coverage, size, kept = (shown[name][1][-1] for name in ("coverage", "size", "kept_tokens"))
    malformed = sum(shown[f"invalid/{kind}"][1][-1] for kind in MALFORMED if f"invalid/{kind}" in shown)
    said = (
        [f"At the end {100 * malformed:.0f} % of the answers were malformed, and those pick nothing."]
        if malformed
        else []
    )
    said += [
        f"At the end the picks covered {100 * coverage:.0f} % of the evidence with {size:.1f} passages and kept "
        f"{100 * kept:.0f} % of the pool's tokens: {100 * (1 - kept):.0f} % were saved."
    ]
    names = [stage.name for stage in config.stages]
    if switches:
        when = ", ".join(f"{name} from step {step:,}" for name, step in zip(names[1:], switches, strict=False))
        said.append(f"Stages: {names[0]}, then {when}. Rewards of different stages cannot be compared.")
    elif len(names) > 1:
        said.append(f"The run never left its first stage, {names[0]}.")
    flat = training.get("frac_reward_zero_std", ((), ()))[1]
    if flat and sum(flat) / len(flat) > FLAT:
        said.append(
            f"In {100 * sum(flat) / len(flat):.0f} % of groups all completions had the same reward: they taught nothing."
        )
    return tuple(said)


def _samples(run: Run) -> list[dict[str, Any]]:
    path = run.folder / SAMPLES_FILE if run.folder is not None else None
    if path is None or not path.is_file():
        return []
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found
