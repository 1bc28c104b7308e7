"""The cells of a study on disk: where each run lies, how far it is, and whether it is still the run the file describes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from budwood import config
from budwood.api import BudwoodError, ConfigError
from budwood.folder import DONE, RunFolder, default_output
from budwood.overrides import Loaded
from budwood.planning import Plan, plan
from budwood.runs import changes, with_source
from budwood.study_config import Study

MAY_CHANGE = ("name", "output", "tracking", "checkpoint")
"""What a finished cell may differ in from the file: nothing that its numbers depend on."""


@dataclass(frozen=True)
class Cell:
    """One variant and seed. ``status``: new, or what its run last said of itself (see :class:`RunFolder`)."""

    variant: str
    seed: int
    run: RunFolder

    @property
    def status(self) -> str:
        said: str = self.run.status["status"]
        return "new" if said == "unknown" else said

    @property
    def done(self) -> bool:
        return self.status in DONE


def study_folder(study: Study) -> Path:
    first = next(iter(study.runs.values()))
    return default_output(first.data).resolve() / study.config.name


def cells(study: Study) -> list[Cell]:
    """Variant by variant within a seed, so that a study that is cut short has as much of each."""
    folder, name = study_folder(study), study.config.name
    return [
        Cell(variant, seed, RunFolder(folder / f"{name}-{variant}-s{seed}"))
        for seed in study.config.seed_list
        for variant in study.runs
    ]


def plans(study: Study) -> tuple[dict[str, Loaded], dict[str, Plan]]:
    """variant -> its configuration, seed left open, and what it would do; every problem of every variant in one error."""
    loaded, planned = {}, {}
    problems: list[str] = []
    for variant, run in study.runs.items():
        try:
            if run.data.get("init_from") == "last":
                raise ConfigError(
                    "init_from: 'last' is another run when the study goes on; name it: budwood runs lists them"
                )
            count = run.data.get("processes")
            if isinstance(count, int) and count > 1:
                raise ConfigError(
                    f"processes: {count} processes are to train each run, and a study trains every run in one, several runs "
                    "at a time; leave it out, or start the runs one by one with budwood launch"
                )
            loaded[variant] = with_source(run, study_folder(study).parent)
            planned[variant] = plan(loaded[variant], None)
        except BudwoodError as error:
            what = f"{error.where}: {error.what}" if error.where and not error.problems else error.what
            problems += [f"variant {variant}: {text}" for text in error.problems or (what,)]
    if problems:
        raise ConfigError(
            f"the runs of this study have {len(problems)} problem{'s' if len(problems) > 1 else ''}",
            where=study.origin,
            problems=tuple(problems),
        )
    return loaded, planned


def with_seed(loaded: Loaded, seed: int) -> Loaded:
    return replace(loaded, data={**loaded.data, "seed": seed})


def check_fresh(study: Study, planned: Mapping[str, Plan], begun: Sequence[Cell]) -> None:
    """Refuse to mix: every run that was begun must be the one that its variant describes now."""
    stale: dict[tuple[str, str], int] = {}
    known: dict[tuple[str, str], list[str]] = {}
    for cell in begun:
        if not cell.run.config_file.exists():
            continue
        now = planned[cell.variant]
        before = {**config.load(cell.run.config_file).data, "seed": now.data["seed"]}
        seen = (cell.variant, json.dumps(before))
        if seen not in known:  # the runs of a variant mostly say the same
            known[seen] = changes(now, before, MAY_CHANGE)
        if known[seen]:
            key = (cell.variant, ", ".join(known[seen]))
            stale[key] = stale.get(key, 0) + 1
    if stale:
        raise ConfigError(
            "the file no longer describes runs that this study has begun",
            where=study.origin,
            do="Undo the change, give the variant or the study another name, or remove the runs from "
            f"{study_folder(study)}. To tabulate what is there: --tables-only. What changed:",
            problems=tuple(
                f"variant {variant} ({n} run{'s' * (n > 1)}): {what}" for (variant, what), n in stale.items()
            ),
        )


def steps_to_go(planned: Plan) -> int:
    """The most training steps that one cell can take; 0 if its trainer's section does not say."""
    trainer = planned.data["trainer"]
    total: Any = trainer.get("total_timesteps", trainer.get("total_steps", 0))
    budget = planned.data["budget"]
    return min(total, budget) if total and budget else total or budget or 0


def steps_taken(cell: Cell) -> int:
    """Up to the newest checkpoint, from which a cell that was cut short goes on."""
    return int(cell.run.status.get("steps", 0))
