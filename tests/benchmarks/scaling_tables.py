"""From what scaling.py measured to what docs/scaling.md shows: predictions, extrapolations and the figure.

    python tests/benchmarks/scaling_tables.py docs/scaling      # prints the page's tables and draws its figure, in seconds

Reads and writes four small tables (rounds, split, network, serial); everything else is computed from them.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scaling_model import Iteration, Link, all_reduce, line, most_rows, seconds

Table = list[dict[str, Any]]
TABLES = ("rounds", "split", "network", "serial")
SETTINGS = {"envs": 8, "steps": 256, "batch": 256, "epochs": 5}
SEVERAL = {"two": 2, "four": 4, "eight": 8}
"""Trainings in several processes."""
SHARES = {"quarter": 0.25, "half": 0.5, "full": 1.0, "wide": 4.0}
"""Trainings in one process that goes the way of several -> their part of the environments and rows."""
DEVICES = (2, 8, 64, 1_024)
ETHERNET = Link("Ethernet, 25 GB/s, ring", 20e-6, 25e9)
INFINIBAND = Link("InfiniBand, 50 GB/s, ring or tree", 5e-6, 50e9, "ring or tree")


def read(folder: Path) -> dict[str, Table]:
    found = {}
    for name in TABLES:
        with (folder / f"{name}.csv").open() as file:
            found[name] = [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return found


def write(tables: Mapping[str, Table], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: f"{v:.7g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def column(table: Table, name: str, **where: Any) -> np.ndarray:
    """Of the rows in which ``where`` holds; rows without a value are left out."""
    rows = [row for row in table if all(row[key] == value for key, value in where.items())]
    return np.array([row[name] for row in rows if row.get(name, "") != ""], dtype=float)


def interval(values: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """Bootstrap 95 % interval of the median."""
    picks = np.random.default_rng(0).choice(values, (draws, len(values)))
    low, high = np.quantile(np.median(picks, axis=1), [0.025, 0.975])
    return float(low), float(high)


# ---- what a prediction takes ------------------------------------------------------------------------------------------


def work_of(tables: Mapping[str, Table], task: str, envs: int = 8, batch: int = 256) -> Iteration:
    """Lines through what trainings of four sizes took in one process; nothing of two processes enters."""
    split = tables["split"]

    def fitted(part: str, count: float, size: int) -> Any:
        sizes = [share * size for share in SHARES.values()]
        medians = [float(np.median(column(split, part, task=task, job=job))) for job in SHARES]
        return line(sizes, [found / count for found in medians])

    m = SETTINGS["epochs"] * SETTINGS["envs"] * SETTINGS["steps"] // SETTINGS["batch"]
    parts = ("simulate", "act", "draw", "learn")
    whole = {part: column(split, part, task=task, job="full") for part in ("whole", *parts)}
    return Iteration(
        envs=envs,
        steps=SETTINGS["steps"],
        batch=batch,
        epochs=SETTINGS["epochs"],
        gradient=column(split, "sum bytes", task=task, job="two").max(),
        simulate=fitted("simulate", SETTINGS["steps"], SETTINGS["envs"]),
        act=fitted("act", SETTINGS["steps"], SETTINGS["envs"]),
        draw=fitted("draw", m, SETTINGS["batch"]),
        learn=fitted("learn", m, SETTINGS["batch"]),
        rest=float(np.median(whole["whole"] - sum(whole[part] for part in parts))),
    )


def network(tables: Mapping[str, Table], task: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Bytes, and the mean seconds of an exchange of as many: what forty of them take is forty means, whatever is usual."""
    sizes = sorted({row["bytes"] for row in tables["network"]})
    spent = [column(tables["network"], "seconds", task=task, kind=kind, bytes=size) for size in sizes]
    return np.array(sizes), np.array([found.mean() for found in spent])


def loopback(tables: Mapping[str, Table], task: str) -> Link:
    """Of two processes: t = 2 latency + S / bandwidth, least squares of relative errors over all sizes."""
    fit = line(*network(tables, task, "sum"))
    return Link("gloo, loopback", fit.fixed / 2, 1 / fit.each)


def undisturbed(tables: Mapping[str, Table]) -> Link:
    """Likewise through the least that an exchange took in any round."""
    sizes = sorted({row["bytes"] for row in tables["network"]})
    fit = line(sizes, [column(tables["network"], "seconds", kind="sum", bytes=size).min() for size in sizes])
    return Link("gloo, loopback, undisturbed", fit.fixed / 2, 1 / fit.each)


def exchanged(tables: Mapping[str, Table], task: str, kind: str, size: float) -> float:
    """Seconds of one exchange between two processes, between measured sizes."""
    known, spent = network(tables, task, kind)
    return float(np.exp(np.interp(np.log(size), np.log(known), np.log(spent))))


def predicted(tables: Mapping[str, Table], task: str) -> np.ndarray:
    """Seconds of an iteration of two processes, one prediction a round: the slower twin between any two exchanges, what every
    process repeats for the rows of the other, uneven minibatches, and the exchanges at what they take alone."""
    work = work_of(tables, task)
    half = work.batch / 2
    more = work.steps * work.act.each * work.envs / 2 + work.minibatches * (
        work.draw.each * half + work.learn.each * (most_rows(work.batch, 2, work.transitions) - half)
    )
    sums = work.minibatches * exchanged(tables, task, "sum", work.gradient) + 2 * exchanged(tables, task, "sum", 1_000)
    gathers = exchanged(tables, task, "gather", 6 * work.transitions) + 3 * exchanged(tables, task, "gather", 200)
    return column(tables["rounds"], "slower twin", task=task) + more + sums + gathers


def crowding(tables: Mapping[str, Table], task: str) -> float:
    """How much longer a training takes beside another one on the other core."""
    twins, half = (column(tables["rounds"], job, task=task) for job in ("twins", "half"))
    return float(np.median(twins / half))


def by_formula(tables: Mapping[str, Table], task: str, p: int = 2) -> float:
    """Seconds of an iteration of ``p`` processes from the lines and the link alone, as slow as beside one other."""
    found = seconds(work_of(tables, task), p, loopback(tables, task))
    exchanges = found.gradients + found.gathers
    return crowding(tables, task) * (found.total - exchanges) + exchanges


# ---- what the page shows ----------------------------------------------------------------------------------------------


def throughputs(tables: Mapping[str, Table]) -> Iterator[str]:
    """Environment steps a second, how much faster two processes are, and what was predicted of it."""
    heads = ("task", "steps a second, one process", "two processes", "times as fast", "predicted", "inside")
    yield "| " + " | ".join((*heads, "by the formula", "undisturbed")) + " |"
    yield "|---|---|---|---|---|---|---|---|"
    for task in tasks(tables):
        one, two = (column(tables["rounds"], job, task=task) for job in ("one", "two"))
        steps = SETTINGS["envs"] * SETTINGS["steps"]
        low, high = interval(one / two)
        told = one / predicted(tables, task)
        formula = np.median(one) / by_formula(tables, task)
        ideal = np.median(one) / seconds(work_of(tables, task), 2, undisturbed(tables)).total
        inside = "yes" if low <= np.median(told) <= high else "no"
        yield (
            f"| {task} | {steps / np.median(one):,.0f} | {steps / np.median(two):,.0f} | {np.median(one / two):.3f} "
            f"[{low:.3f}, {high:.3f}] | {np.median(told):.3f} [{interval(told)[0]:.3f}, {interval(told)[1]:.3f}] | {inside} "
            f"| {formula:.3f} | {ideal:.2f} |"
        )


PARTS = ("simulate", "act", "draw", "learn", "sums", "gathers", "other")


def splits(tables: Mapping[str, Table]) -> Iterator[str]:
    """Milliseconds of an iteration on process 0, medians over the rounds."""
    yield "| task, training | whole | " + " | ".join(PARTS) + " |"
    yield "|---" * (len(PARTS) + 2) + "|"
    for task in tasks(tables):
        for job in ("one", "full", "half", "two"):
            spent = {part: column(tables["split"], part, task=task, job=job) for part in ("whole", *PARTS[:-1])}
            spent["other"] = spent["whole"] - sum(spent[part] for part in PARTS[:-1])
            yield f"| {task}, {job} | " + " | ".join(f"{1e3 * np.median(part):.1f}" for part in spent.values()) + " |"


def networks(tables: Mapping[str, Table]) -> Iterator[str]:
    """Microseconds of exchanges between two processes, by bytes from each."""
    yield "| bytes | " + " | ".join(f"all-reduce, beside {task} | gather of objects" for task in tasks(tables)) + " |"
    yield "|---" * (2 * len(tasks(tables)) + 1) + "|"
    measured = [network(tables, task, kind) for task in tasks(tables) for kind in KINDS]
    for i, size in enumerate(measured[0][0]):
        yield f"| {size:,.0f} | " + " | ".join(f"{1e6 * spent[i]:,.0f}" for _, spent in measured) + " |"


KINDS = ("sum", "gather")


EVERY = 10


def amdahl(tables: Mapping[str, Table]) -> Iterator[str]:
    """What process 0 does alone, every :data:`EVERY` iterations, and what that leaves of any number of processes."""
    yield "| task | evaluation of ten episodes, s | checkpoint, s | share of a run | at most |"
    yield "|---|---|---|---|---|"
    for row in tables["serial"]:
        if row["job"] == "one":
            alone = (row["evaluation"] + row["checkpoint"]) / EVERY
            share = alone / (alone + np.median(column(tables["rounds"], "one", task=row["task"])))
            yield (
                f"| {row['task']} | {row['evaluation']:.2f} | {row['checkpoint']:.3f} | {100 * share:.0f} % "
                f"| {1 / share:.1f} times as fast |"
            )


def links(tables: Mapping[str, Table]) -> tuple[Link, ...]:
    return undisturbed(tables), ETHERNET, INFINIBAND


def speedups(tables: Mapping[str, Table], task: str, link: Link, weak: bool, p: int) -> float:
    """Throughput of ``p`` processes over that of one. Strong: 1,024 environments in all. Weak: 8 in each."""
    each, rows = SETTINGS["envs"], SETTINGS["batch"]
    alone = work_of(tables, task, each, rows) if weak else work_of(tables, task, 1_024, 128 * rows)
    together = work_of(tables, task, each * p, rows * p) if weak else alone
    grown = together.transitions / alone.transitions
    return grown * seconds(alone, 1, link).total / seconds(together, p, link).total


def extrapolations(tables: Mapping[str, Table], weak: bool) -> Iterator[str]:
    """Times the throughput of one process."""
    yield "| task | network | " + " | ".join(f"{p:,}" for p in DEVICES) + " |"
    yield "|---" * (len(DEVICES) + 2) + "|"
    for task in tasks(tables):
        for link in links(tables):
            told = [f"{speedups(tables, task, link, weak, p):.3g}" for p in DEVICES]
            yield f"| {task} | {link.name} | " + " | ".join(told) + " |"


def updates_of_policies(gpu: Path) -> Iterator[str]:
    """Weak scaling of an update of 32 chunks a device, whose seconds on one H100 were measured: share of p times one."""
    yield "| policy | network | seconds alone | MB of gradients | " + " | ".join(f"{p:,}" for p in DEVICES) + " |"
    yield "|---" * (len(DEVICES) + 4) + "|"
    with gpu.open() as file:
        rows = [row for row in csv.DictReader(file) if row["what"] == "update minibatch" and row["dtype"] == "bf16"]
    for row in rows:
        size = GRADIENT_BYTES[row["policy"]] * float(row["trained_m"]) * 1e6
        alone = float(row["seconds"])
        for link in (ETHERNET, INFINIBAND):
            shares = [alone / (alone + all_reduce(size, p, replace(link, algorithm="ring or tree"))) for p in DEVICES]
            yield (
                f"| {row['policy']}, {row['kernel']} | {link.name} | {alone:.2f} | {size / 1e6:,.0f} | "
                + " | ".join(f"{100 * share:.0f} %" for share in shares)
                + " |"
            )


def one_gpu(devices: Path) -> Iterator[str]:
    """What devices.py measured: medians a second, and the quartiles."""
    yield "| training | policy | on | simulation | processes | a second | beside other work |"
    yield "|---|---|---|---|---|---|---|"
    with devices.open() as file:
        for row in csv.DictReader(file):
            low, middle, high = (f"{float(row[key]):,.0f}" for key in ("low", "per_second", "high"))
            shown = [row[key] for key in ("training", "policy", "device", "simulation", "processes")]
            yield "| " + " | ".join(shown) + f" | {middle} {row['unit']} ({low} to {high}) | {row['beside']} |"


GRADIENT_BYTES = {"smolvla": 4, "pi0": 2}
"""Of a number: SmolVLA's expert was trained in float32, pi0's in bfloat16."""


def page(tables: Mapping[str, Table], gpu: Path) -> dict[str, str]:
    """Heading -> table, as docs/scaling.md has them."""
    made = {
        "throughput": throughputs(tables),
        "an iteration": splits(tables),
        "alone": amdahl(tables),
        "exchanges": networks(tables),
        "strong scaling": extrapolations(tables, weak=False),
        "weak scaling": extrapolations(tables, weak=True),
        "whole-size policies": updates_of_policies(gpu),
        "one gpu": one_gpu(DEVICES_FILE),
    }
    return {heading: "\n".join(lines) for heading, lines in made.items()}


def figure(tables: Mapping[str, Table]) -> str:
    """Strong and weak scaling of the last task over all three networks, as an SVG document."""
    from budwood.charts import INK, SERIES, document, standalone

    task = tasks(tables)[-1]
    counts = [2**i for i in range(11)]

    def draw(axes: Any) -> None:
        for colour, link in zip(SERIES, links(tables), strict=False):
            for weak, style in ((True, "-"), (False, "--")):
                label = f"{link.name}, {'weak' if weak else 'strong'}"
                axes.plot(
                    counts, [speedups(tables, task, link, weak, p) for p in counts], style, color=colour, label=label
                )
        axes.plot(counts, counts, ":", color=INK, linewidth=1.0)
        axes.set(xscale="log", yscale="log", xlabel="processes", ylabel=f"times the throughput of one, {task}")
        axes.set_xticks([1, 8, 64, 1024], ["1", "8", "64", "1,024"])
        axes.set_yticks([1, 8, 64, 1024], ["1", "8", "64", "1,024"])

    return standalone(document(draw, (7.5, 4.2)))


def tasks(tables: Mapping[str, Table]) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in tables["rounds"]))


def show(folder: Path) -> None:
    """Print what the page shows, and draw its figure anew."""
    tables = read(folder)
    for heading, table in page(tables, GPU).items():
        print(f"\n{heading}\n\n{table}")
    for task in tasks(tables):
        print(f"\n{task}: {work_of(tables, task)}\n{loopback(tables, task)}")
    print(undisturbed(tables))
    (folder / "scaling.svg").write_text(figure(tables))


DEVICES_FILE = Path(__file__).parents[2] / "docs" / "scaling" / "devices.csv"
GPU = Path(__file__).parents[2] / "docs" / "methods" / "flow_rl" / "gpu.csv"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with rounds.csv and the other rows that scaling.py wrote")
    show(parser.parse_args().folder)
