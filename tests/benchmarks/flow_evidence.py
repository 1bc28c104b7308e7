"""The tables under docs/methods/flow_rl/hopper and walker, of the runs of a study; and flows on standardised observations.

    python tests/benchmarks/flow_evidence.py study runs/flow-hopper --out docs/methods/flow_rl/hopper
    python tests/benchmarks/flow_evidence.py starts flows/hopper flows/hopper-gaussian --out docs/methods/flow_rl/starts.csv
    python tests/benchmarks/flow_evidence.py spread hopper.safetensors flows/hopper flows/hopper-gaussian --out FILE.csv
    python tests/benchmarks/flow_evidence.py search runs/flow-search --out docs/methods/flow_rl/hopper/search.csv
    python tests/benchmarks/flow_evidence.py standardise flows/late late.safetensors --out flows/late-standardised
    python tests/benchmarks/flow_evidence.py quarters runs/flow-kitchen-long --out docs/methods/flow_rl/kitchen/long.csv

study: `study.csv` as `budwood study` wrote it, and `evaluations.csv`, every evaluation of every run. starts: twenty
episodes of each flow without noise, as `budwood flow-rl evaluate` plays them; the file is begun anew. spread: how far the
chunks of one observation lie apart, without noise and with that of an untrained noise network, in units of the
demonstrations' range. search: a row a run, its settings and evaluations. standardise: the same policy, to rounding, reading
(x - mean) / std of the demonstrations in place of their range scaled to [-1, 1]. quarters: a row a run, its
evaluations, at most four, and what share of executed actions lay beyond the bounds, mean over each quarter of its iterations.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml
from safetensors.numpy import load_file

from budwood import journal
from budwood_flow_rl.chains import rollout
from budwood_flow_rl.evaluation import evaluate, steps_of
from budwood_flow_rl.kernels import NoisyEuler
from budwood_flow_rl.noise import NoiseNet
from budwood_flow_rl.normalisation import MinMax, Normalisation
from budwood_flow_rl.saved import FACTS, SavedFlow, load_flow, save_flow

RETURN = "eval/return_mean"
EPISODES, FIRST_SEED = 20, 20_000
STARTS = ("environment", "family", "steps", "episodes", "return", "std", "demonstrations")
NOISES = {"rectified": (None, (0.10, 0.24), (0.2, 0.5)), "gaussian": ((0.10, 0.24), (0.2, 0.6))}
"""Ranges of sigma that the studies train with, and None: no noise."""
SETTINGS = {"gamma": 0.99, "n_steps": 128, "batch_size": 256, "learning_rate": 3e-4}
"""Those with a column of their own, as the search's base has them."""


def rows_of(study: Path) -> list[dict[str, str]]:
    with (study / "study.csv").open() as file:
        return list(csv.DictReader(file))


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_quarters(study: Path, out: Path) -> None:
    def told(row: Mapping[str, str]) -> list[Any]:
        history = journal.history(study / row["run"])
        beyond = history["flow_rl/saturation"][1]
        shares = [mean(beyond[i * len(beyond) // 4 : (i + 1) * len(beyond) // 4]) for i in range(4)]
        epochs = int(history["train/n_updates"][1][-1])
        returns = [round(value, 2) for value in history[RETURN][1]]
        return [
            *(row[key] for key in ("variant", "seed", "status")),
            epochs,
            *returns,
            *[""] * (4 - len(returns)),
            round(history["rollout/ep_rew_mean"][1][-1], 2),
            *(round(share, 3) for share in shares),
        ]

    returns, shares = ([f"{name}_{quarter}" for quarter in range(1, 5)] for name in ("return", "saturation"))
    begun = [row for row in rows_of(study) if row["status"] != "new"]
    rows = [told(row) for row in begun if RETURN in journal.history(study / row["run"])]
    write(out, ["variant", "seed", "status", "epochs", *returns, "noisy_return", *shares], rows)


def write_study(study: Path, out: Path) -> None:
    begun = [row for row in rows_of(study) if row["status"] != "new"]
    found = []
    for row in begun:
        history = journal.history(study / row["run"])
        epochs = history.get("train/n_updates", ([], [0]))[1][-1]
        found.append((row, int(epochs), history.get(RETURN, ([], []))[1]))
    most = max(len(returns) for _, _, returns in found)
    write(
        out / "evaluations.csv",
        ["variant", "seed", "status", "epochs", *(f"return_{i}" for i in range(1, most + 1))],
        (
            [row["variant"], row["seed"], row["status"], epochs, *(round(value, 2) for value in returns)]
            + [""] * (most - len(returns))
            for row, epochs, returns in found
        ),
    )
    shutil.copy(study / "study.csv", out / "study.csv")


def start(folder: Path, steps: int) -> tuple[Any, ...]:
    flow = load_flow(folder)
    returns = evaluate(flow, episodes=EPISODES, steps=steps, n_envs=10, seed=FIRST_SEED).returns
    numbers = float(returns.mean()), float(returns.std(ddof=1)), flow.meta.source["demonstrations"]["mean_return"]
    return environment(flow), flow.field.name, steps, EPISODES, *(round(number, 2) for number in numbers)


def steps_in_studies(folder: Path) -> tuple[int, ...]:
    flow = load_flow(folder)
    return (4, 2, 1) if flow.field.name == "rectified" else (steps_of(flow, None),)


def spread(folder: Path, observations: torch.Tensor, sigma: tuple[float, float] | None) -> tuple[Any, ...]:
    """Standard deviation of an action given its observation, mean over 200 observations and all entries, of 64 chunks each."""
    torch.manual_seed(0)
    flow = load_flow(folder)
    field, steps = flow.field, steps_of(flow, None)
    noise = NoiseNet(field.feat_dim, field.horizon, field.action_dim, (64, 64), *(sigma or (1.0, 1.0)))
    some = observations[torch.randperm(len(observations))[:200]].repeat_interleave(64, 0)
    chain = rollout(
        field, NoisyEuler(steps, noise), flow.normalisation.observations.scale(some), noise_free=sigma is None
    )
    apart = chain.actions.unflatten(0, (200, 64)).std(1).mean()
    return environment(flow), field.name, *(sigma or ("", "")), round(float(apart), 3)


def environment(flow: SavedFlow) -> str:
    return str(flow.meta.env_id).partition("-")[0].removesuffix("2d").lower()


def searched(study: Path, row: Mapping[str, str], variant: Mapping[str, Any], at: Iterable[int]) -> list[Any]:
    """Settings of the run, and its evaluations ``at`` these steps; ``variant`` is what sets it off from the others."""
    run = study / row["run"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    init = Path(config["plugins"]["flow_rl"]["init"])
    facts = json.loads((init / FACTS).read_bytes())
    demonstrations = round(facts["source"]["demonstrations"]["mean_return"])
    scaled = "standardised" if init.name.endswith("-standardised") else "min-max"
    told = {
        *(f"trainer.args.{name}" for name in SETTINGS),
        "plugins.flow_rl.init",
        "plugins.flow_rl.schedule.critic_warmup",
    }
    others = {
        key.removeprefix("plugins.flow_rl.").removeprefix("trainer.args."): value
        for key, value in variant.items()
        if key not in told
    }
    history = journal.history(run)
    returns = dict(zip(*history[RETURN], strict=True))
    return [
        row["variant"],
        row["seed"],
        demonstrations,
        scaled,
        *(config["trainer"]["args"].get(name, usual) for name, usual in SETTINGS.items()),
        json.dumps(others) if others else "",
        *(round(returns[step], 1) if step in returns else "" for step in at),
        round(history["rollout/ep_rew_mean"][1][-1], 1),
    ]


def write_search(study: Path, out: Path) -> None:
    config = yaml.safe_load((study / "study.yaml").read_text())
    every, total = config["base"]["evaluation"]["every"], config["base"]["trainer"]["total_timesteps"]
    variants, at = {name: given or {} for name, given in config["variants"].items()}, range(every, total + 1, every)
    order = list(variants)
    rows = [row for row in rows_of(study) if row["status"] == "finished"]
    rows.sort(key=lambda row: (order.index(row["variant"]), int(row["seed"])))
    header = ["variant", "seed", "demonstrations", "observations", *SETTINGS, "other"]
    header += [f"return_{step}" for step in at] + ["noisy_return"]
    write(out, header, (searched(study, row, variants[row["variant"]], at) for row in rows))


@torch.no_grad()
def standardised(flow: SavedFlow, observations: torch.Tensor) -> SavedFlow:
    """The first layer takes up what the new scale of observations (N, O) changes; the last O of its inputs are theirs."""
    middle, spread = observations.mean(0), observations.std(0, correction=0)
    new = Normalisation(MinMax((middle - spread).numpy(), (middle + spread).numpy()), flow.normalisation.actions)
    old, now, first = flow.normalisation.observations, new.observations, flow.field.net.first
    columns = first.weight[:, -len(middle) :]
    first.bias += columns @ ((now.centre - old.centre) / old.radius)
    columns *= now.radius / old.radius
    return SavedFlow(flow.field, new, flow.meta)


def write_standardised(source: Path, demonstrations: Path, out: Path) -> None:
    observations = torch.from_numpy(load_file(demonstrations)["observations"])
    flow, some = load_flow(source), observations[:64]
    x, s, h = (
        torch.randn(len(some), flow.field.horizon, flow.field.action_dim),
        torch.rand(len(some)),
        torch.full((len(some),), 0.25),
    )
    with torch.no_grad():
        before, _ = flow.field.velocity(x, s, flow.normalisation.observations.scale(some), h)
        new = standardised(flow, observations)
        after, _ = new.field.velocity(x, s, new.normalisation.observations.scale(some), h)
    save_flow(out, new.field, new.normalisation, new.meta)
    print(f"velocities of 64 observations differ by at most {(before - after).abs().max():.1e}")


def write_spread(demonstrations: Path, flows: Sequence[Path], out: Path) -> None:
    observations = torch.from_numpy(load_file(demonstrations)["observations"])
    chosen = [(folder, sigma) for folder in flows for sigma in NOISES[load_flow(folder).field.name]]
    rows = [spread(folder, observations, sigma) for folder, sigma in chosen]
    write(out, ("environment", "family", "lowest", "highest", "spread"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    takes = {
        "study": ("folder",),
        "starts": ("flows",),
        "spread": ("demonstrations", "flows"),
        "search": ("folder",),
        "standardise": ("flow", "demonstrations"),
        "quarters": ("folder",),
    }
    for name, arguments in takes.items():
        command = commands.add_parser(name)
        for argument in arguments:
            command.add_argument(argument, type=Path, nargs="+" if argument == "flows" else None)
        command.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.command == "study":
        write_study(asked.folder, asked.out)
    elif asked.command == "starts":
        chosen = [(folder, steps) for folder in asked.flows for steps in steps_in_studies(folder)]
        write(asked.out, STARTS, [start(folder, steps) for folder, steps in chosen])
    elif asked.command == "spread":
        write_spread(asked.demonstrations, asked.flows, asked.out)
    elif asked.command == "search":
        write_search(asked.folder, asked.out)
    elif asked.command == "quarters":
        write_quarters(asked.folder, asked.out)
    else:
        write_standardised(asked.flow, asked.demonstrations, asked.out)


if __name__ == "__main__":
    main()
