"""What became of each fault: rows in a file, and the table of them."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Outcome:
    """``ended``: how, in a word. ``detected``: seconds from the strike to the end of all processes, where they ended. ``lost``:
    training that had to be done again, in intervals between two checkpoints, as far as the journal knows. ``problem``: what
    was lost for good or not said; empty is survived."""

    seed: int
    number: int
    world: str
    kind: str
    about: str
    ended: str
    detected: float | None
    lost: float
    problem: str


def table(outcomes: Sequence[Outcome]) -> str:
    """A row for each kind, each adapter, and all."""
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    by_adapter: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.kind].append(outcome)
        by_adapter[f"**{outcome.world.partition('-')[0]}**"].append(outcome)
    lines = [
        "| fault | faults | survived | lost work: median, most | seconds to detect: median, most |",
        "|---|---|---|---|---|",
    ]
    for name, found in [*sorted(by_kind.items()), *by_adapter.items(), ("**all**", list(outcomes))]:
        well = sum(not outcome.problem for outcome in found)
        lost, seconds = [o.lost for o in found], [o.detected for o in found if o.detected is not None]
        until = f"{median(seconds):.1f}, {max(seconds):.1f}" if seconds else "goes on"
        lines.append(f"| {name} | {len(found)} | {well} | {median(lost):.2f}, {max(lost):.2f} | {until} |")
    return "\n".join(lines)


def read(file: Path) -> list[Outcome]:
    with file.open(newline="") as lines:
        return [
            Outcome(
                **row
                | {
                    "seed": int(row["seed"]),
                    "number": int(row["number"]),
                    "detected": float(row["detected"]) if row["detected"] else None,
                    "lost": float(row["lost"]),
                }
            )
            for row in csv.DictReader(lines)
        ]


def write(file: Path, outcomes: Sequence[Outcome]) -> None:
    beside = file.with_name(f".{file.name}")
    with beside.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, [field.name for field in fields(Outcome)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(outcome) for outcome in sorted(outcomes, key=lambda outcome: outcome.number))
    beside.replace(file)
