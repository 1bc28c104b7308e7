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
OTHER_PAIRS = [
    ("hopper", "flow-sde-K2", "reinflow-K2"),
    ("hopper", "flow-sde-K2", "flow-sde-K4"),
    ("hopper", "reinflow-K2", "reinflow-K1"),
    ("walker", "reinflow-K2", "reinflow-K1"),
    *(
        (name, f"gaussian-bc-{width}", against)
        for width, against in (("narrow", "reinflow-K1"), ("narrow", "gaussian-bc"), ("matched", "gaussian-bc"))
        for name in ("hopper", "walker")
    ),
]


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
    return f"| {name} | {variant} | {steps:,.0f} | {share(name, variant)} | {minutes} |"


def paired(name: str, variant: str, against: str, column: str = "return") -> str:
    ours, theirs = finished(name, variant), finished(name, against)
    assert ours.keys() == theirs.keys()
    return around([float(ours[seed][column]) - float(theirs[seed][column]) for seed in sorted(ours)], "+")


def difference(name: str, variant: str, against: str = "reinflow-K4") -> str:
    shown = str(len(finished(name, variant))) if against == "reinflow-K4" else against
    columns = (paired(name, variant, against, column) for column in ("return", "mean return"))
    return f"| {name} | {variant} | {shown} | " + " | ".join(columns) + " |"


def ends(name: str, variant: str) -> str:
    return ", ".join(f"{end:.0f}" for end in values(name, variant, "return"))


def middle(name: str, variant: str, column: str = "return") -> str:
    return f"{mean(values(name, variant, column)):.0f}"


def epochs(name: str, variant: str) -> str:
    """How many were begun, of those that the settings allow."""
    return f"{mean(int(row['epochs']) for row in EVALUATIONS[name] if row['variant'] == variant):.0f}"


def share(name: str, variant: str) -> str:
    """Physics, sampling and update: CPU seconds of 1,000 environment steps."""
    steps = mean(values(name, variant, "env steps"))
    thousands = steps / (values(name, variant, "steps")[0] / DECISIONS) / 1000  # environment steps of an iteration
    return ", ".join(f"{mean(values(name, variant, c)) / thousands:.3f}" for c in ("physics", "sampling", "update"))


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


def test_other_pairs_are_quoted_as_they_are() -> None:
    assert [pair for pair in OTHER_PAIRS if difference(*pair) not in PAGE.splitlines()] == []


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
        gaussian, flow = (middle(name, variant, column) for variant in ("gaussian-bc", "reinflow-K4"))
        assert f"{gaussian} against {flow}" in PROSE.replace(" at the end", "")
    assert f"too unsteady to tell ({ends('hopper', 'gaussian-bc')})" in PROSE
    scratch, flow = (middle("hopper", variant) for variant in ("ppo-scratch", "reinflow-K4"))
    assert f"{scratch} against {flow}, without demonstrations" in PROSE
    walker, hopper = (epochs(name, "reinflow-K4") for name in ("walker", "hopper"))
    assert f"of 590 epochs {walker} were begun, on Hopper {hopper} of 790" in PROSE
    assert (
        f"`reinflow-K4-kl2` began {epochs('walker', 'reinflow-K4-kl2')} and ended at {middle('walker', 'reinflow-K4-kl2')}, "
        f"{paired('walker', 'reinflow-K4-kl2', 'reinflow-K4')} against `reinflow-K4`, and Flow-SDE, which began all "
        f"{epochs('walker', 'flow-sde-K4')}, at {middle('walker', 'flow-sde-K4')}"
    ) in PROSE
    best, end = (middle("hopper", "reinflow-K4-wide", c) for c in ("best return", "return"))
    assert f"has a best of {best} on Hopper and ends at {end}" in PROSE
    assert f"{paired('hopper', 'reinflow-K4-wide', 'reinflow-K4', 'mean return')} in the mean over the run." in PROSE
    demonstrations = dict.fromkeys(float(row["demonstrations"]) for row in STARTS)
    assert "demonstrations with {:.0f} and {:.0f}".format(*demonstrations) in PROSE


def test_kernels_steps_and_families_are_told_as_they_are() -> None:
    minutes = {v: f"{mean(values('hopper', v, 'cpu_minutes')):.1f}" for task, v in RUN if task == "hopper"}
    to_four = {(name, v): paired(name, v, "reinflow-K4") for name, v in RUN}
    assert (
        f"with four steps {to_four['hopper', 'flow-sde-K4']} on Hopper and {to_four['walker', 'flow-sde-K4']} on Walker2d, "
        f"with two {paired('hopper', 'flow-sde-K2', 'reinflow-K2')} on Hopper."
    ) in PROSE
    assert (
        f"ended at {middle('hopper', 'reinflow-K1')}, {to_four['hopper', 'reinflow-K1']} against `reinflow-K4`, in "
        f"{minutes['reinflow-K1']} minutes of CPU time instead of {minutes['reinflow-K4']}, and `reinflow-K2` between them at "
        f"{middle('hopper', 'reinflow-K2')}, {to_four['hopper', 'reinflow-K2']}, in {minutes['reinflow-K2']}."
    ) in PROSE
    assert (
        f"{epochs('hopper', 'reinflow-K1')} of 790 epochs were begun, against {epochs('hopper', 'reinflow-K4')}"
        in PROSE
    )
    one, two, four = (start_of("walker", f"reinflow-K{steps}") or 0.0 for steps in (1, 2, 4))
    assert (
        f"on Walker2d one is at {to_four['walker', 'reinflow-K1']}, and two are at {to_four['walker', 'reinflow-K2']}, "
        f"with runs at {ends('walker', 'reinflow-K2')} and from a clone that earns more with two steps, {two:.0f}, than with "
        f"four, {four:.0f}; Flow-SDE with two steps against four on Hopper at {paired('hopper', 'flow-sde-K2', 'flow-sde-K4')}."
        f" Two steps against one on Walker2d: {paired('walker', 'reinflow-K2', 'reinflow-K1')} at the end, but "
        f"{paired('walker', 'reinflow-K2', 'reinflow-K1', 'mean return')} in the mean over the run, of which the start is "
        f"{two - one:.0f}."
    ) in PROSE
    shortcut, rectified = (start_of("hopper", variant) or 0.0 for variant in ("shortcut-K4", "reinflow-K4"))
    assert (
        f"began at {shortcut:.0f} and ended at {middle('hopper', 'shortcut-K4')}, {to_four['hopper', 'shortcut-K4']} against "
        f"the rectified flow, and {paired('hopper', 'shortcut-K4', 'reinflow-K4', 'mean return')} in the mean over the run"
    ) in PROSE
    assert f"by more than the {rectified - shortcut:.0f} that its clone earns less" in PROSE
    assert (
        f"began at {start_of('hopper', 'dppo'):.0f} and ended at {ends('hopper', 'dppo')}, {to_four['hopper', 'dppo']} against "
        f"`reinflow-K4`, in {minutes['dppo']} minutes of CPU time instead of {minutes['reinflow-K4']}"
    ) in PROSE


def test_gaussian_peers_of_other_widths_are_told_as_they_are() -> None:
    for peer in ("gaussian-bc-matched", "gaussian-bc-narrow"):
        on = {name: paired(name, peer, "reinflow-K4") for name in ROWS}
        told = f"by {on['hopper']} on Hopper, where its runs ended at {ends('hopper', peer)}"
        assert told in PROSE
        assert f"and by {on['walker']} on Walker2d" in PROSE[PROSE.index(told) :][:300]
    flows = [end for v in FLOWS if ("hopper", v) in RUN for end in values("hopper", v, "return")]
    assert f"each above all {len(flows)} of the flows" in PROSE
    assert min(values("hopper", "gaussian-bc-narrow", "return")) > max(flows)
    one_step = {
        (name, column): paired(name, "gaussian-bc-narrow", "reinflow-K1", column)
        for name in ROWS
        for column in ("return", "mean return")
    }
    assert (
        "It is ahead by {} on Hopper and {} on Walker2d, in the mean over the run by {} and {}.".format(
            *(one_step[name, column] for column in ("return", "mean return") for name in ROWS)
        )
        in PROSE
    )
    begun = [epochs(name, variant) for name in ROWS for variant in ("reinflow-K1", "gaussian-bc-narrow")]
    assert "{} of 790 epochs begun against {}, and {} of 590 against {}.".format(*begun) in PROSE
    gaussian, flow = (start_of("walker", variant) or 0.0 for variant in ("gaussian-bc-narrow", "reinflow-K1"))
    assert f"a start that is {gaussian - flow:.0f} higher on Walker2d" in PROSE


def test_what_differs_from_the_papers_is_what_the_rows_say() -> None:
    told = PROSE[PROSE.index("### What did not come out") : PROSE.index("### How far actions")]
    shortcut = [paired("hopper", "shortcut-K4", "reinflow-K4", column) for column in ("mean return", "return")]
    assert "in the mean over the run, {}; at the end {} |".format(*shortcut) in told
    assert f"behind, {paired('hopper', 'dppo', 'reinflow-K4')}, with" in told
    dppo, flow = (mean(values("hopper", variant, "cpu_minutes")) for variant in ("dppo", "reinflow-K4"))
    assert f"{dppo:.1f} minutes of CPU time a run and {flow:.1f}," in told
    assert f"one step costs return, {paired('hopper', 'reinflow-K1', 'reinflow-K4')};" in told
    gains = [result("walker", variant).split(" | ")[4].strip("+") for variant in ("reinflow-K4", "reinflow-K4-kl2")]
    assert "{}, with an interval that reaches below the start; {} with twice the bound".format(*gains) in told


def test_loads_and_equal_costs_are_told_as_they_are() -> None:
    assert f"{cheapest('hopper'):.2f} minutes on Hopper and {cheapest('walker'):.2f} on Walker2d" in PROSE
    (low, *_, high), (least, *_, most) = (
        sorted(share(name, v).split(",")[0] for task, v in RUN if task == name and start_of(task, v)) for name in ROWS
    )
    assert f"from {low} to {high} seconds of 1,000 steps on Hopper and from {least} to {most} on Walker2d" in PROSE
    then = {(n, v): [float(x) for x in re.findall(r"[\d.]+", at_equal_cost(n, v).split(" | ")[-1])] for n, v in RUN}
    for name in ROWS:
        highest = max(then[name, v][0] for v in FLOWS if (name, v) in RUN)
        assert all(then[name, v][0] > highest for task, v in RUN if task == name and v.startswith("gaussian"))
        whole = {v for task, v in RUN if task == name and v.startswith("gaussian") and then[name, v][1] > highest}
        assert name == "hopper" or whole == {"gaussian-bc", "gaussian-bc-narrow"}
    assert min(then["hopper", v][0] for v in ("reinflow-K4-wide", "flow-sde-K2")) > then["hopper", "reinflow-K4"][0]
    assert then["hopper", "dppo"][0] == min(found[0] for (task, _), found in then.items() if task == "hopper")


FLOWS = tuple(dict.fromkeys(v for _, v in RUN if v.startswith(("reinflow", "flow-sde", "shortcut"))))
BELOW = {
    ("walker", "reinflow-K4"): 1,
    ("hopper", "dppo"): 1,
    ("walker", "dppo"): 2,
    ("hopper", "gaussian-bc-matched"): 1,
}


def test_which_runs_ended_above_their_start() -> None:
    above = dict.fromkeys(ROWS, 0)
    for name, variant in RUN:
        start, found = start_of(name, variant), values(name, variant, "return")
        below = [end for end in found if start is not None and end <= start]
        assert len(below) == BELOW.get((name, variant), 0), (name, variant)
        above[name] += (len(found) - len(below)) * (variant in FLOWS)
    assert f"on Hopper each of {above['hopper']} runs of a flow" in PROSE
    assert f"on Walker2d {above['walker']} of {above['walker'] + 1} did" in PROSE


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


def test_every_variant_was_run_and_what_is_missing_is_named() -> None:
    missing = " ".join(PAGE[PAGE.index("## What was not run") :].split())
    variants = {}
    for name, rows in ROWS.items():
        variants[name] = set(load(ROOT / "configs" / "studies" / f"flow_rl_{name}.yaml").config.variants)
        assert {v for task, v in RUN if task == name} == variants[name]
        assert {row["status"] for row in rows} == {"finished"}
        assert all(finished(name, variant).keys() == set("01234") for variant in variants[name])
        assert f"`configs/studies/flow_rl_{name}.yaml`" in missing
    walker, hopper = re.findall(r"leaves out ([^;.]*)", missing)
    assert set(re.findall("`([^`]+)`", walker)) == variants["hopper"] - variants["walker"]
    assert set(re.findall("`([^`]+)`", hopper)) == variants["walker"] - variants["hopper"]


def test_the_longer_runs_in_the_kitchen_are_told_as_they_were() -> None:
    rows, lines = table("kitchen/long.csv"), PAGE.splitlines()
    for row in rows:
        quarters = ", ".join(row[f"return_{i}"] for i in range(1, 5) if row[f"return_{i}"])
        ended = f"{row['noisy_return']} | {row['epochs']} | {row['saturation_1']}, {row['saturation_4']}"
        assert f"| {row['variant']} | {row['seed']} | {quarters} | {ended} |" in lines
    variants = load(ROOT / "configs" / "studies" / "flow_rl_kitchen_long.yaml").config.variants
    assert {row["variant"] for row in rows} == set(variants)

    finished = [row for row in rows if row["status"] == "finished"]
    assert len(finished) == 9
    assert "Nine runs were finished" in PAGE
    ends = {name: [float(row["return_4"]) for row in finished if row["variant"] == name] for name in variants}
    assert max(ends["reinflow-K4"]) < 0.1
    assert max(row for name, row in ends.items() if name.startswith("reinflow") and row) == ends["reinflow-reference"]
    assert "with 0.90 and 0.70 at the end" in PROSE
    assert ends["reinflow-reference"] == [0.90, 0.70]
    (lost,) = (row for row in rows if row["variant"] == "reinflow-narrower")
    assert float(lost["return_1"]) == 0
    assert ends["flow-sde-K4"] == [1.38, 1.10]


def test_the_kitchen_is_told_as_it_was() -> None:
    rows = table("kitchen/study.csv")
    half = {(row["variant"], row["seed"]): row["return_1"] for row in table("kitchen/evaluations.csv")}
    for row in rows:
        told = f"| {half[row['variant'], row['seed']]} | {float(row['return']):.2f} | {float(row['noisy return']):.2f} "
        assert f"| {row['variant']} | {row['seed']} {told}| {float(row['joint KL']):.2f} |" in PAGE.splitlines()
    for variant, name in (
        ("flow-sde-K4", "Flow-SDE ends at"),
        ("reinflow-K4", "ReinFlow at"),
        ("gaussian-bc", "The Gaussian ends at"),
    ):
        ends = [float(row["return"]) for row in rows if row["variant"] == variant]
        half_width = float(student.ppf(0.975, len(ends) - 1)) * stdev(ends) / len(ends) ** 0.5
        low, high = mean(ends) - half_width, mean(ends) + half_width
        assert low < 1.0 < high, "neither excludes the clone's return"
        assert f"{name} {mean(ends):.2f} ({low:.2f} to {high:.2f}" in PROSE
