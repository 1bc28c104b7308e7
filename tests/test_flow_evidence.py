"""The tables of runs on Hopper and Walker2d say what their rows say."""

from __future__ import annotations

import csv
import json
import re
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml
from scipy.stats import t as student

from budwood.study_config import load

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "methods"
PAGE = (DOCS / "flow_rl.md").read_text()
PROSE = " ".join(PAGE.split())


def table(name: str) -> list[dict[str, str]]:
    with (DOCS / "flow_rl" / name).open() as file:
        return list(csv.DictReader(file))


SEARCH = table("hopper/search.csv")
STARTS = table("starts.csv")
ROWS = {name: table(f"{name}/study.csv") for name in ("hopper", "walker")}
SPREADS = {name: table(f"{name}/spread.csv") for name in ("hopper", "walker")}
EVALUATIONS = {name: table(f"{name}/evaluations.csv") for name in ("hopper", "walker")}
RUN = [
    (name, variant)
    for name, rows in ROWS.items()
    for variant in dict.fromkeys(row["variant"] for row in rows if row["status"] == "finished")
]
DECISIONS = 512  # of an iteration: 64 of each of 8 environments


def finished(name: str, variant: str) -> dict[str, dict[str, str]]:
    return {r["seed"]: r for r in ROWS[name] if (r["variant"], r["status"]) == (variant, "finished")}


def values(name: str, variant: str, column: str) -> list[float]:
    return [float(row[column]) for row in finished(name, variant).values()]


def start_of(name: str, variant: str) -> float | None:
    """Return of the policy that the variant begins with, in as many steps as it takes."""
    if variant == "ppo-scratch":
        return None
    family = {"gaussian": "gaussian", "dppo": "diffusion", "shortcut": "shortcut"}.get(
        variant.split("-")[0], "rectified"
    )
    own = {"gaussian": "1", "diffusion": "10"}
    steps = "".join(re.findall(r"-K(\d)", variant)) or own[family]
    (row,) = (r for r in STARTS if (r["environment"], r["family"], r["steps"]) == (name, family, steps))
    return float(row["return"])


def around(found: list[float], sign: str = "") -> str:
    """Mean and its 95 % interval by Student's t over seeds."""
    half = student.ppf(0.975, len(found) - 1) * stdev(found) / len(found) ** 0.5
    middle = mean(found)
    return f"{middle:{sign}.0f} ({middle - half:{sign}.0f} to {middle + half:{sign}.0f})"


def result(name: str, variant: str) -> str:
    ends, start = values(name, variant, "return"), start_of(name, variant)
    from_start = ["", "", ""]
    if start is not None:
        above = sum(end > start for end in ends)
        from_start = [f"{start:.0f}", f"{mean(ends) / start - 1:+.0%}".replace("%", " %"), f"{above} of {len(ends)}"]
    others = (f"{mean(values(name, variant, c)):.0f}" for c in ("mean return", "best return", "noisy return"))
    kl = f"{mean(values(name, variant, 'joint KL')):.2f}" if start is not None else ""
    cells = (variant, str(len(ends)), from_start[0], around(ends), *from_start[1:], *others, kl)
    return "| " + " | ".join(cells) + " |"


def cost(name: str, variant: str) -> str:
    minutes = f"{mean(values(name, variant, 'cpu_minutes')):.1f}"
    if start_of(name, variant) is None:
        return f"| {name} | {variant} | {values(name, variant, 'steps')[0]:,.0f} | | {minutes} |"
    steps = mean(values(name, variant, "env steps"))
    thousands = steps / (values(name, variant, "steps")[0] / DECISIONS) / 1000  # environment steps of an iteration
    parts = ", ".join(f"{mean(values(name, variant, c)) / thousands:.3f}" for c in ("physics", "sampling", "update"))
    return f"| {name} | {variant} | {steps:,.0f} | {parts} | {minutes} |"


def difference(name: str, variant: str) -> str:
    ours, theirs = finished(name, variant), finished(name, "reinflow-K4")
    both = ours.keys() & theirs.keys()
    columns = (
        around([float(ours[s][c]) - float(theirs[s][c]) for s in sorted(both)], "+") for c in ("return", "mean return")
    )
    return f"| {name} | {variant} | {len(both)} | " + " | ".join(columns) + " |"


def curves(name: str, variant: str) -> list[list[float]]:
    """The evaluations of every finished run."""
    return [
        [float(value) for key, value in row.items() if key.startswith("return_") and value]
        for row in EVALUATIONS[name]
        if (row["variant"], row["status"]) == (variant, "finished")
    ]


def cheapest(name: str) -> float:
    """CPU minutes of a run of the variant that takes the fewest."""
    return min(mean(values(name, variant, "cpu_minutes")) for task, variant in RUN if task == name)


def at_equal_cost(name: str, variant: str) -> str:
    """The last evaluation that lies within the minutes of the cheapest variant, a run's minutes being spread evenly over it."""
    found, minutes = curves(name, variant), mean(values(name, variant, "cpu_minutes"))
    last = int(len(found[0]) * cheapest(name) / minutes + 1e-9)
    ends = around([curve[last - 1] for curve in found])
    return f"| {name} | {variant} | {minutes:.2f} | {last} of {len(found[0])} | {ends} |"


@pytest.mark.parametrize(("name", "variant"), RUN)
def test_every_row_is_quoted_as_it_is(name: str, variant: str) -> None:
    wanted = [result(name, variant), cost(name, variant), at_equal_cost(name, variant)]
    if variant != "reinflow-K4":
        wanted.append(difference(name, variant))
    assert [line for line in wanted if line not in PAGE.splitlines()] == []


@pytest.mark.parametrize("name", ["hopper", "walker"])
def test_evaluations_are_those_of_the_study(name: str) -> None:
    studied = {(row["variant"], row["seed"]): row for row in ROWS[name] if row["status"] != "new"}
    assert [(row["variant"], row["seed"]) for row in EVALUATIONS[name]] == list(studied)
    for row in EVALUATIONS[name]:
        of = studied[row["variant"], row["seed"]]
        assert row["status"] == of["status"]
        curve = [float(value) for key, value in row.items() if key.startswith("return_") and value]
        if row["status"] == "finished":
            found = (curve[-1], mean(curve), max(curve))
            assert found == pytest.approx([float(of[c]) for c in ("return", "mean return", "best return")], abs=0.01)


def test_what_speaks_against_it_is_what_the_rows_say() -> None:
    for name, column in (("walker", "return"), ("hopper", "mean return")):
        gaussian, flow = (mean(values(name, variant, column)) for variant in ("gaussian-bc", "reinflow-K4"))
        assert f"{gaussian:.0f} against {flow:.0f}" in PROSE.replace(" at the end", "")
    unsteady = ", ".join(f"{end:.0f}" for end in values("hopper", "gaussian-bc", "return"))
    assert f"too unsteady to tell ({unsteady})" in PROSE
    scratch, flow = (mean(values("hopper", variant, "return")) for variant in ("ppo-scratch", "reinflow-K4"))
    assert f"{scratch:.0f} against {flow:.0f}, without demonstrations" in PROSE
    epochs = {
        name: mean(int(row["epochs"]) for row in rows if row["variant"] == "reinflow-K4")
        for name, rows in EVALUATIONS.items()
    }
    assert f"of 590 epochs {epochs['walker']:.0f} were begun, on Hopper {epochs['hopper']:.0f} of 790" in PROSE
    best, end = (mean(values("hopper", "reinflow-K4-wide", c)) for c in ("best return", "return"))
    assert f"has a best of {best:.0f} on Hopper and ends at {end:.0f}" in PROSE
    demonstrations = dict.fromkeys(float(row["demonstrations"]) for row in STARTS)
    assert "demonstrations with {:.0f} and {:.0f}".format(*demonstrations) in PROSE


def test_fewer_steps_and_the_peers_are_told_as_they_are() -> None:
    names = ("reinflow-K1", "reinflow-K2", "reinflow-K4", "dppo")
    minutes = {v: f"{mean(values('hopper', v, 'cpu_minutes')):.1f}" for v in names}
    ends = {v: f"{mean(values('hopper', v, 'return')):.0f}" for v in names}
    paired = {v: difference("hopper", v).split(" | ")[3] for v in names}
    assert (
        f"ended at {ends['reinflow-K1']}, {paired['reinflow-K1']} against `reinflow-K4`, in {minutes['reinflow-K1']} "
        f"minutes of CPU time instead of {minutes['reinflow-K4']}, and `reinflow-K2` between them at {ends['reinflow-K2']}, "
        f"{paired['reinflow-K2']}, in {minutes['reinflow-K2']}."
    ) in PROSE
    epochs = [
        mean(int(row["epochs"]) for row in EVALUATIONS["hopper"] if row["variant"] == variant)
        for variant in ("reinflow-K1", "reinflow-K4")
    ]
    assert "{:.0f} of 790 epochs were begun, against {:.0f}".format(*epochs) in PROSE
    of_dppo = ", ".join(f"{end:.0f}" for end in values("hopper", "dppo", "return"))
    assert (
        f"began at {start_of('hopper', 'dppo'):.0f} and ended at {of_dppo}, {paired['dppo']} against `reinflow-K4`, in "
        f"{minutes['dppo']} minutes of CPU time instead of {minutes['reinflow-K4']}"
    ) in PROSE
    matched = {task: difference(task, "gaussian-bc-matched").split(" | ")[3] for task in ("hopper", "walker")}
    of_matched = ", ".join(f"{end:.0f}" for end in values("hopper", "gaussian-bc-matched", "return"))
    assert (
        f"ahead of `reinflow-K4`, by {matched['hopper']} on Hopper, where its runs ended at {of_matched}, and by "
        f"{matched['walker']} on Walker2d"
    ) in PROSE


ONE_BELOW = {("walker", "reinflow-K4"), ("hopper", "dppo"), ("hopper", "gaussian-bc-matched")}


def test_which_runs_ended_above_their_start() -> None:
    for name, variant in RUN:
        start = start_of(name, variant)
        below = [end for end in values(name, variant, "return") if start is not None and end <= start]
        assert len(below) == ((name, variant) in ONE_BELOW), (name, variant)
    assert {row["status"] for rows in ROWS.values() for row in rows} == {"finished", "new"}


def test_how_far_chunks_lie_apart_is_quoted_as_it_is() -> None:
    for name, rows in SPREADS.items():
        told = [f"{float(row['spread']):.2f}" for row in rows]
        assert f"| {name} | {' | '.join(told)} |" in PAGE.splitlines()


def test_the_search_is_quoted_as_it_is() -> None:
    for variant, rows in groupby(SEARCH, key=itemgetter("variant")):
        seeds = list(rows)
        returns = "; ".join(
            f"{r['seed']}: {float(r['return_25600']):.0f}, {float(r['return_51200']):.0f}" for r in seeds
        )
        noisy = "; ".join(f"{float(r['noisy_return']):.0f}" for r in seeds)
        quoted = [
            line for line in PAGE.splitlines() if line.startswith(f"| {variant} | {seeds[0]['demonstrations']} |")
        ]
        assert [line.endswith(f"| {returns} | {noisy} |") for line in quoted] == [True], variant


def test_the_search_can_be_run_again() -> None:
    """Its study has the settings of every row, and no others."""
    study = load(ROOT / "configs" / "studies" / "flow_rl_search.yaml")
    assert list(study.config.variants) == list(dict.fromkeys(row["variant"] for row in SEARCH))
    for row in SEARCH:
        config, given = study.runs[row["variant"]].data, study.config.variants[row["variant"]] or {}
        for key in ("gamma", "n_steps", "batch_size", "learning_rate"):
            assert config["trainer"]["args"][key] == float(row[key]), row["variant"]
        for key, value in json.loads(row["other"] or "{}").items():
            assert value in (given.get(f"plugins.flow_rl.{key}"), given.get(f"trainer.args.{key}")), row["variant"]
        init = Path(config["plugins"]["flow_rl"]["init"]).name
        assert init.endswith("-standardised") == (row["observations"] == "standardised"), row["variant"]
        assert init.startswith("early") == (row["demonstrations"] == "338"), row["variant"]


def test_shipped_settings_are_those_that_the_search_ended_with() -> None:
    (found, _) = (row for row in SEARCH if row["variant"] == "early-most-updates")
    for name in ("flow_rl/hopper", "flow_rl/walker", "studies/flow_rl_hopper", "studies/flow_rl_walker"):
        config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
        args = config.get("base", config)["trainer"]["args"]
        for key in ("gamma", "n_steps", "batch_size", "learning_rate"):
            assert args[key] == float(found[key]), (name, key)


def test_what_is_missing_is_named() -> None:
    missing = " ".join(PAGE[PAGE.index("## What was not run") :].split())
    for name in ("hopper", "walker"):
        file = f"flow_rl_{name}.yaml"
        variants = load(ROOT / "configs" / "studies" / file).config.variants
        said = re.search(rf"`configs/studies/{file}`: ([^.]*)\.", missing)
        assert said
        assert set(re.findall("`([^`]+)`", said[1])) == set(variants) - {v for task, v in RUN if task == name}
