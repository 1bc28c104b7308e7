"""record: demonstrations of a trained policy, or of a dataset that others recorded."""

from __future__ import annotations

import json
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from budwood.api.terminal import ProgressLine
from budwood_flow_rl.commands import _options as shared

if TYPE_CHECKING:
    from budwood_flow_rl.demonstrations import Demonstrations

SOURCE_HELP = "minari:ID (local, below MINARI_DATASETS_PATH) or lerobot:REPO with --root, instead of POLICY."


RUN, ZIP, MINARI, LEROBOT = KINDS = ("a run", "a model.zip", "minari", "lerobot")
BELONGS = {
    **dict.fromkeys(("transitions", "deterministic", "n_envs", "seed"), (RUN, ZIP)),
    "steps": (RUN,),
    **dict.fromkeys(("trust", "algo", "env_args", "vecnormalize"), (ZIP,)),
    "env_id": (ZIP, MINARI, LEROBOT),
    "root": (LEROBOT,),
    "keys": (MINARI, LEROBOT),
}
"""The kinds of source that an option says something about."""


@click.command()
@click.argument("policy", required=False)
@click.option("--from", "dataset", help=SOURCE_HELP)
@click.option("--out", type=shared.FILE, required=True, help="The file to write.")
@click.option("--transitions", type=shared.Count(), default=60_000, show_default=True, help="Steps to record.")
@click.option("--deterministic", is_flag=True, help="Without the exploration noise that it trained with.")
@click.option("--n-envs", type=shared.Count(), default=8, show_default=True, help="Environments stepped together.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--at", "steps", type=shared.Count(), help="A run's checkpoint of this step; default: the newest.")
@click.option("--trust", is_flag=True, help="A model.zip holds pickles: loading it runs its author's code. Allow it.")
@click.option("--algo", help="What a model.zip was trained with: ppo, a2c, sac, td3, ddpg, trpo, tqc, crossq, ...")
@click.option("--env", "env_id", help="Environment of a model.zip, or of a dataset that names none or another.")
@click.option("--env-args", callback=shared.arguments, help="Its arguments, a JSON object.")
@click.option(
    "--vecnormalize",
    type=shared.FILE,
    help="Observation statistics; default: vecnormalize.pkl beside model.zip, if any.",
)
@click.option("--root", type=shared.FOLDER, help="Folder of the LeRobotDataset.")
@click.option(
    "--observation", "keys", multiple=True, help="Column or dict entry to observe; several are put end to end."
)
def command(
    policy: str | None,
    dataset: str | None,
    out: Path,
    transitions: int,
    deterministic: bool,
    n_envs: int,
    seed: int,
    steps: int | None,
    trust: bool,
    algo: str | None,
    env_id: str | None,
    env_args: dict[str, Any] | None,
    vecnormalize: Path | None,
    root: Path | None,
    keys: tuple[str, ...],
) -> dict[str, Any]:
    """Record demonstrations of a trained policy or a dataset.

    POLICY is a run of budwood (folder, id or `last`) or a model.zip of Stable-Baselines3. Observations are raw, actions as
    they were executed, rewards the environment's own. OUT is written whole at the end: a recording that is interrupted
    leaves nothing, and the same command starts anew.

    \b
      budwood flow-rl record last --transitions 60_000 --out hopper.safetensors
      budwood flow-rl record model.zip --trust --algo sac --env Hopper-v5 --out hopper.safetensors
      budwood flow-rl record --from minari:mujoco/hopper/medium-v0 --out hopper.safetensors
      budwood flow-rl record --from lerobot:me/pusht --root DIR --observation observation.state --out pusht.safetensors
    """
    from budwood_flow_rl.demonstrations import save

    if (policy is None) == (dataset is None):
        raise click.UsageError("Name either a policy (a run or a model.zip) or a dataset with --from.")
    _check_options(_kind(policy, dataset))
    if dataset is not None:
        demonstrations = _read(dataset, root, keys, env_id)
    else:
        assert policy is not None
        from budwood_flow_rl import recording

        zipped = Path(policy).suffix == ".zip"
        progress = ProgressLine()
        found = _zip(Path(policy), algo, env_id, env_args, vecnormalize, trust) if zipped else None
        with nullcontext(found) if found is not None else recording.of_run(policy, steps) as expert:
            try:
                demonstrations = recording.record(
                    expert,
                    transitions,
                    n_envs=n_envs,
                    seed=seed,
                    deterministic=deterministic,
                    progress=lambda done: progress.show(lambda: f"{done:,}/{transitions:,} transitions"),
                )
            except KeyboardInterrupt:
                progress.clear()
                click.echo(f"nothing was written to {out}: the same command starts anew", err=True)
                raise
        progress.clear()
    save(out, demonstrations)
    return _told(out, demonstrations)


def _kind(policy: str | None, dataset: str | None) -> str:
    if policy is not None:
        return ZIP if Path(policy).suffix == ".zip" else RUN
    kind, _, name = str(dataset).partition(":")
    if kind not in (MINARI, LEROBOT) or not name:
        raise click.UsageError(f"--from {dataset}: write minari:ID or lerobot:REPO")
    return kind


def _check_options(kind: str) -> None:
    """Options that were given and say nothing about this kind of source are refused, rather than ignored."""
    context = click.get_current_context()
    given = [
        parameter
        for parameter in context.command.params
        if kind not in BELONGS.get(str(parameter.name), KINDS)
        and context.get_parameter_source(str(parameter.name)) is not click.core.ParameterSource.DEFAULT
    ]
    if given:
        told = "; ".join(f"{option.opts[0]} is for {' or '.join(BELONGS[str(option.name)])}" for option in given)
        raise click.UsageError(f"The source is {kind}: {told}. Leave that out.")


def _read(dataset: str, root: Path | None, keys: tuple[str, ...], env_id: str | None) -> Demonstrations:
    from budwood_flow_rl import sources

    kind, _, name = dataset.partition(":")
    if kind == MINARI:
        return sources.of_minari(name, keys, env_id)
    return sources.of_lerobot(name, root, keys or ("observation.state",), env_id)


def _zip(
    path: Path,
    algo: str | None,
    env_id: str | None,
    env_args: dict[str, Any] | None,
    vecnormalize: Path | None,
    trust: bool,
) -> Any:
    from budwood_flow_rl import recording

    if not path.is_file():
        raise click.UsageError(f"there is no file {path}")
    _check_zip(path, algo, env_id, trust)
    assert algo is not None
    assert env_id is not None
    beside = path.with_name("vecnormalize.pkl")
    if vecnormalize is None and beside.is_file():
        vecnormalize = beside
        click.echo(f"observation statistics from {beside}")
    return recording.of_zip(path, algo, env_id, env_args or {}, vecnormalize, trust=trust)


def _check_zip(path: Path, algo: str | None, env_id: str | None, trust: bool) -> None:
    """:raises ConfigError: all that is lacking at once, with the command to type."""
    from budwood.api import ConfigError
    from budwood_flow_rl.recording import ALGORITHMS

    lacking: dict[str, str] = {}
    reasons, notes = [], []
    if not trust:
        lacking["trust"] = ""
        reasons.append("it contains pickles, and loading a pickle runs whatever code its author put there")
        notes.append("if you made it or trust who did; a run of budwood needs no trust: name its folder")
    if algo not in ALGORITHMS:
        lacking["algo"] = "ALGO"
        reasons.append("it does not tell its algorithm" if algo is None else f"there is no algorithm {algo!r}")
        notes.append(f"ALGO is one of {', '.join(ALGORITHMS)}")
    if env_id is None:
        lacking["env_id"] = "ENV"
        reasons.append("it does not tell its environment")
    if lacking:
        told = f" ({'; '.join(notes)})" if notes else ""
        raise ConfigError("; ".join(reasons), where=str(path), do=f"Type {_typed(**lacking)}{told}")


def _typed(**also: str) -> str:
    """The command as it was typed, and ``also``: values by the name of their parameter."""
    context = click.get_current_context()
    given = {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    } | also
    words = [str(given["policy"])]
    for option in context.command.params:
        if option.name in given and isinstance(option, click.Option):
            value = given[option.name]
            text = [json.dumps(value) if isinstance(value, dict) else str(value)]
            words += [option.opts[0], *([] if option.is_flag else text)]
    return f"{context.command_path} {shlex.join(words)}"


def _told(out: Path, demonstrations: Demonstrations) -> dict[str, Any]:
    finished = int(demonstrations.finished.sum())
    mean, std = demonstrations.mean_return, None
    click.echo(
        f"{len(demonstrations):,} transitions, {len(demonstrations.lengths)} episodes ({finished} finished), in {out}"
    )
    if mean is not None and demonstrations.returns is not None:
        std = float(demonstrations.returns[demonstrations.finished].std())
        click.echo(f"return {mean:.1f}, standard deviation {std:.1f}, over the finished episodes")
    return {
        "out": str(out),
        "transitions": len(demonstrations),
        "episodes": len(demonstrations.lengths),
        "finished": finished,
        "mean_return": mean,
        "return_std": std,
        "env_id": demonstrations.env_id,
    }
