"""run, resume, eval, export: commands about one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from budwood.cli.groups import SettingsCommand, settings
from budwood.cli.output import Answer, facts, headline, say, title

if TYPE_CHECKING:
    from budwood.runs import Result

INTERRUPTED = 130
SETTINGS = click.argument("overrides", metavar="[NAME=VALUE]...", nargs=-1, callback=settings)


@click.command(cls=SettingsCommand)
@click.argument("config", metavar="FILE")
@SETTINGS
def run(config: str, overrides: tuple[str, ...]) -> Answer:
    """Train one run as FILE says, with single settings changed.

    \b
      budwood run hopper.yaml
      budwood run hopper.yaml seed=3 trainer.total_timesteps=50_000
      budwood run hopper.yaml init_from=last        start from the newest run's policy

    Ctrl-C checkpoints and stops; `budwood resume` goes on, in several processes under
    `budwood launch -n N` again. Everything is kept in a folder of its own under `output`.
    """
    if "=" in config and not Path(config).exists():
        raise click.UsageError(f"{config!r} is a setting; the configuration file comes first")
    from budwood.progress import screen
    from budwood.runs import run as train

    return _report(train(config, overrides, progress=screen()))


@click.command(cls=SettingsCommand)
@click.argument("reference", metavar="RUN")
@SETTINGS
def resume(reference: str, overrides: tuple[str, ...]) -> Answer:
    """Continue RUN from its newest intact checkpoint.

    RUN is a folder, a run's id or the beginning of it, an MLflow run id, or `last`. A finished run goes on when it is
    given more steps.

    \b
      budwood resume last
      budwood resume hopper-s3 trainer.total_timesteps=2_000_000
    """
    from budwood.progress import screen
    from budwood.runs import resume as go_on

    return _report(go_on(reference, overrides, progress=screen()))


@click.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
@click.option("-n", "--processes", type=click.IntRange(min=1), required=True, help="How many, on this machine.")
@click.option("--deadline", type=click.FloatRange(min=1), help="Seconds that one waits for another; default: 1800.")
@click.argument("words", metavar="run|resume ...", nargs=-1, type=click.UNPROCESSED, required=True)
def launch(processes: int, deadline: float | None, words: tuple[str, ...]) -> Answer:
    """Train one run in several processes, each with its share of the environments or rows, all with the same update.

    \b
      budwood launch -n 2 run hopper.yaml seed=3
      budwood launch -n 4 resume last               also a run that another number of processes began

    If one fails, all end, and its error is shown. Where there are GPUs, `accelerate launch -m budwood run ...` does as well.
    """
    if words[0] not in ("run", "resume"):
        raise click.UsageError(f"only run and resume can be launched, not {words[0]!r}")
    from budwood.cli import complain
    from budwood.launching import launch as start

    ended = start(words, processes, deadline)
    if ended.said:
        complain(ended.said)
    return Answer(ended.answer, ended.code)


def _report(result: Result) -> Answer:
    """The end of a run, for people and for scripts."""
    from budwood.folder import going_on

    if not result.first:
        return Answer(None, INTERRUPTED if result.status == "interrupted" else 0)
    title(f"{result.status}  {result.run_id}")
    mean, error = result.metrics.get("eval/return_mean"), result.metrics.get("eval/return_se")
    success = result.metrics.get("eval/success_rate")
    label, value = headline(result.metrics) or ("", None)
    shown = {
        label: f"{mean:.2f}" + (f" ± {error:.2f} (standard error)" if error else "")
        if mean is not None
        else value and f"{value:.6g}",
        "success rate": None if success is None else f"{success:.1%}",
        **result.paths,
        "mlflow": f"run {result.mlflow_run_id}; open the page with: budwood ui" if result.mlflow_run_id else None,
    }
    facts(shown)
    interrupted = result.status == "interrupted"
    if interrupted:
        say(f"Continue with: {going_on(result.paths.get('folder', result.run_id))}")
    data = {
        "run_id": result.run_id,
        "status": result.status,
        "metrics": result.metrics,
        "paths": result.paths,
        "mlflow_run_id": result.mlflow_run_id,
        "notes": result.notes,
    }
    return Answer(data, INTERRUPTED if interrupted else 0)


@click.command("eval", cls=SettingsCommand)
@click.argument("reference", metavar="RUN")
@SETTINGS
@click.option("--episodes", type=click.IntRange(min=1), help="Default: 20, or the trainer's own numbers instead.")
@click.option("--seed", default=20_000, show_default=True, help="Seed of the episodes, apart from training's.")
def evaluate(reference: str, overrides: tuple[str, ...], episodes: int | None, seed: int) -> dict[str, object]:
    """Fresh episodes of RUN's newest checkpoint, with deterministic actions; or what its trainer measures on held-out
    rows. Settings of the run can be changed for this evaluation.

    \b
      budwood eval last --episodes 100
      budwood eval last dataset.eval=held-out.jsonl
    """
    from budwood.api import Evaluation
    from budwood.progress import screen
    from budwood.runs import evaluate as measure

    found, checkpoint = measure(reference, episodes, seed, overrides, progress=screen())
    if not isinstance(found, Evaluation):
        facts({**{name: f"{value:.6g}" for name, value in found.items()}, "checkpoint": checkpoint})
        if click.get_current_context().get_parameter_source("seed") is ParameterSource.COMMANDLINE:
            say("--seed was not used: these are numbers of held-out rows, not of episodes")
        return {"metrics": found, "checkpoint": checkpoint}
    returns = found.returns
    mean, spread = float(returns.mean()), float(returns.std(ddof=1)) if len(returns) > 1 else 0.0
    facts(
        {
            "return": f"{mean:.2f} ± {spread:.2f} (mean and standard deviation of {len(returns)} episodes)",
            "length": f"{found.lengths.mean():.1f} steps on average",
            **{name: f"{value:.4g}" for name, value in found.metrics.items()},
            "checkpoint": checkpoint,
        }
    )
    return {
        "mean": mean,
        "std": spread,
        "returns": returns,
        "lengths": found.lengths,
        "metrics": found.metrics,
        "seed": seed,
        "checkpoint": checkpoint,
    }


@click.command()
@click.argument("reference", metavar="RUN")
@click.option("--to", type=click.Path(file_okay=False, path_type=Path), help="Folder; default: export/ in the run's.")
def export(reference: str, to: Path | None) -> dict[str, object]:
    """Write RUN's newest checkpoint in the trainer's native format, to be loaded without budwood.

    \b
      budwood export last --to model/
    """
    from budwood.progress import screen
    from budwood.runs import export as write

    path = write(reference, to, progress=screen())
    say(str(path))
    return {"path": path}
