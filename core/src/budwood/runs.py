"""What a person does with runs: ``run``, ``resume``, ``evaluate``, ``export``, ``restored`` and ``explain``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from budwood import config, machine
from budwood.api import ALONE, CheckpointError, ConfigError, Evaluation, Measured, Processes, StateTree, Trainer
from budwood.checkpoint import Checkpoints, taking_up
from budwood.folder import RunFolder, default_output, find_run, going_on, new_folder, prepare_output
from budwood.planning import Plan, explain, plan
from budwood.processes import joined
from budwood.progress import Progress, counting, silent
from budwood.training import Result, train

__all__ = ["Plan", "Restored", "Result", "evaluate", "explain", "export", "restored", "resume", "run"]


EPISODES = 20
"""Of an evaluation that does not say how many."""


def run(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    progress: Progress | None = None,
    **keywords: Any,
) -> Result:
    """Train one run from a YAML file or a mapping.

    ``overrides`` are ``a.b=value`` strings; keyword arguments say the same with ``__`` for the dots:
    ``budwood.run("configs/x.yaml", seed=3, trainer__total_timesteps=50_000)``.
    """
    loaded = config.load(source, [*overrides, *config.keyword_overrides(keywords)])
    with joined(_asked(loaded)) as processes:
        folder, loaded = processes.from_first(_place(loaded) if processes.first else (RunFolder(Path()), loaded))
        return _begin(folder, loaded, _shown(progress, processes), processes)


def resume(reference: str, overrides: Sequence[str] = (), *, progress: Progress | None = None) -> Result:
    """Continue a run from its newest intact checkpoint; a finished run needs a larger number of steps."""
    folder = find_run(reference)
    if overrides and folder.study is not None:
        raise ConfigError(
            f"this run belongs to the study {folder.study.name}, which refuses runs of other settings than its own",
            where=folder.run_id,
            do=f"Change the study's file, or start a run of your own with init_from={folder.run_id}",
        )
    loaded = config.load(folder.config_file, overrides)
    with joined(_asked(loaded), f"resume {reference}") as processes:
        return _go_on(folder, loaded, _shown(progress, processes), processes)


def take_up(folder: RunFolder, loaded: config.Loaded, progress: Progress) -> Result:
    """Train the run of ``folder``, a cell of a study: from its newest intact checkpoint, or from the beginning."""
    with joined(_asked(loaded)) as processes:
        begin = _go_on if folder.config_file.exists() else _begin
        return begin(folder, loaded, progress, processes)


def _asked(loaded: config.Loaded) -> int | None:
    """How many processes a configuration says; it is checked further when it is resolved."""
    count = loaded.data.get("processes")
    return count if isinstance(count, int) else None


def _shown(progress: Progress | None, processes: Processes) -> Progress:
    return progress if progress is not None and processes.first else silent()


def _place(loaded: config.Loaded) -> tuple[RunFolder, config.Loaded]:
    """Where a new run is to lie, and its configuration with the run it starts from, if any."""
    output = prepare_output(default_output(loaded.data))
    loaded = with_source(loaded, output)
    return new_folder(output, str(loaded.data.get("name", "run")), loaded.data.get("seed", 0)), loaded


def _begin(folder: RunFolder, loaded: config.Loaded, progress: Progress, processes: Processes = ALONE) -> Result:
    planned = plan(loaded, folder.folder, processes=processes)
    with _built(planned) as trainer:
        notes = _warmed(trainer, planned)
        if processes.first:
            folder.create(again=folder.study is not None)
        processes.from_first(None)
        return train(folder, planned, trainer, None, notes, progress)


def _go_on(folder: RunFolder, loaded: config.Loaded, progress: Progress, processes: Processes = ALONE) -> Result:
    found, begun_with = processes.from_first(_newest_path(folder) if processes.first else (None, None))
    planned = plan(loaded, folder.folder, processes=processes, begun_with=begun_with)
    if found is None:
        _check_origin(planned, config.load(folder.config_file).data, folder.config_file)
        with _built(planned) as trainer:
            notes = ["no checkpoint yet: starting from the beginning", *_warmed(trainer, planned)]
            return train(folder, planned, trainer, None, notes, progress)
    path, damaged = found
    state, meta = Checkpoints(folder.checkpoints, 1).load(path)
    _check_origin(planned, meta["config"], path)
    with _built(planned) as trainer:
        with taking_up(str(path)):
            if processes.first:
                _check_unfinished(folder, planned, trainer, state["session"])
                _lift_stop(folder, state["session"])
            state["session"]["stopped"] = processes.from_first(state["session"]["stopped"])
            notes = [
                *_left_out(damaged),
                f"continuing from {path.name}",
                *machine.version_changes(meta["versions"]),
                *trainer.load_state_dict(state["trainer"]),
            ]
        return train(folder, planned, trainer, (state, meta), notes, progress)


def _newest_path(folder: RunFolder) -> tuple[tuple[Path, list[str]] | None, int | None]:
    """The newest intact checkpoint, if any, with what is wrong with newer ones; and how many processes the run began with."""
    store = Checkpoints(folder.checkpoints, 1)
    found = store.latest()
    return found, (store.meta(found[0]) if found else folder.status).get("begun_with")


def with_source(loaded: config.Loaded, output: Path) -> config.Loaded:
    """``init_from`` as the folder of the run that is meant now: ``last`` will be another one tomorrow."""
    reference = loaded.data.get("init_from")
    if not isinstance(reference, str):
        return loaded
    try:
        source = find_run(reference, output)
    except ConfigError as error:
        error.where = "init_from"
        raise
    return replace(loaded, data={**loaded.data, "init_from": str(source.folder)})


@contextmanager
def _built(planned: Plan) -> Iterator[Trainer]:
    trainer = planned.build_trainer()
    try:
        yield trainer
    finally:
        trainer.close()


def _warmed(trainer: Trainer, planned: Plan) -> list[str]:
    """Take over another run's policy if ``init_from`` names one; what there is to say about it."""
    if not planned.data["init_from"]:
        return []
    source = find_run(planned.data["init_from"])
    state, path, notes = _newest(source)
    with taking_up(str(path)):
        trainer.load_policy(state["trainer"])
    return [*notes, f"policy taken from {source.run_id}, {path.name}"]


def _left_out(damaged: Sequence[str]) -> list[str]:
    return [f"damaged checkpoint left out: {problem}" for problem in damaged]


LENGTHS = ("total_timesteps", "total_steps")
"""What an adapter may call the length of training: environment steps, or optimiser steps where there are none."""


def _check_unfinished(folder: RunFolder, planned: Plan, trainer: Trainer, state: StateTree) -> None:
    if folder.status["status"] != "finished":
        return
    steps, budget = state["steps"], planned.data["budget"]
    env_steps = state.get("env_steps", steps + state["evaluation_steps"])
    length = next((key for key in planned.data["trainer"] if key in LENGTHS), LENGTHS[0])
    settings = [
        *([f"trainer.{length}={2 * trainer.total_steps}"] if steps >= trainer.total_steps else []),
        *([f"budget={2 * env_steps}"] if budget is not None and env_steps >= budget else []),
    ]
    if settings:
        raise ConfigError(
            f"this run is finished, at {steps:,} steps" + (f" and {env_steps:,} with evaluations" if budget else ""),
            where=folder.run_id,
            do=f"To train on: {going_on(folder.run_id, ' '.join(settings))}"
            if folder.study is None
            else f"How long it trains is for its study {folder.study.name} to say",
        )


def _lift_stop(folder: RunFolder, state: StateTree) -> None:
    """Who resumes a run that a plugin stopped, and that has said so, wants it to go on."""
    if folder.status.get("stopped_at") == state["steps"]:
        state["stopped"] = None


def evaluate(
    reference: str,
    episodes: int | None = None,
    seed: int = 20_000,
    overrides: Sequence[str] = (),
    *,
    progress: Progress | None = None,
) -> tuple[Evaluation | Mapping[str, float], Path]:
    """Fresh episodes of a run's newest intact checkpoint, and which one that is.

    A trainer that evaluates by numbers of its own gives those instead, unless ``episodes`` are asked for. ``overrides``
    change settings of the run for this evaluation alone, e.g. the rows that are held out.
    """
    with restored(reference, overrides=overrides, progress=progress) as found:
        if episodes is None and isinstance(found.trainer, Measured) and (numbers := found.trainer.measure()):
            return numbers, found.checkpoint
        return _played(found.trainer, episodes or EPISODES, seed, progress or silent()), found.checkpoint


def _played(trainer: Trainer, episodes: int, seed: int, progress: Progress) -> Evaluation:
    progress.phase("evaluating")
    try:
        return trainer.evaluate(episodes, seed, counting(progress))
    finally:
        progress.stop()


def export(reference: str, to: Path | None = None, *, progress: Progress | None = None) -> Path:
    """The trainer's native files of a run's newest intact checkpoint; default: ``export/`` in the run's folder."""
    folder = find_run(reference)
    target = to or folder.folder / "export"
    with restored(reference, progress=progress) as found:
        target.mkdir(parents=True, exist_ok=True)
        return found.trainer.export(target)


@dataclass(frozen=True)
class Restored:
    """A run's trainer with the policy of ``checkpoint``; ``config`` is the run's whole configuration, as plain data."""

    trainer: Trainer
    checkpoint: Path
    run_id: str
    config: Mapping[str, Any]


@contextmanager
def restored(
    reference: str, steps: int | None = None, *, overrides: Sequence[str] = (), progress: Progress | None = None
) -> Iterator[Restored]:
    """The trained policy of a run, to act with: of the checkpoint at ``steps``, or of the newest intact one.

    ``with budwood.restored("last") as run: run.trainer.native.predict(...)``. Nothing is unpickled. ``overrides`` change
    settings of the run for this use alone.
    """
    folder = find_run(reference)
    state, path, notes = _newest(folder) if steps is None else _at(folder, steps)
    for note in notes:
        (progress or silent()).message(note)
    begun_with = Checkpoints(folder.checkpoints, 1).meta(path).get("begun_with")
    planned = plan(config.load(folder.config_file, overrides), folder.folder, recorded=True, begun_with=begun_with)
    with _built(planned) as trainer:
        with taking_up(str(path)):
            trainer.load_policy(state["trainer"])
        yield Restored(trainer, path, folder.run_id, planned.data)


def _at(folder: RunFolder, steps: int) -> tuple[StateTree, Path, list[str]]:
    store = Checkpoints(folder.checkpoints, 1)
    path = store.at(steps)
    return store.load(path)[0], path, []


def _newest(folder: RunFolder) -> tuple[StateTree, Path, list[str]]:
    """State and place of the newest intact checkpoint, and what is to be said about newer ones."""
    store = Checkpoints(folder.checkpoints, 1)
    found = store.latest()
    if found is None:
        raise CheckpointError("this run has no intact checkpoint", where=str(folder.checkpoints), do="Train it first")
    path, damaged = found
    return store.load(path)[0], path, _left_out(damaged)


def _check_origin(planned: Plan, trained_with: Mapping[str, Any], path: Path) -> None:
    if changed := changes(planned, trained_with):
        raise CheckpointError(
            f"this checkpoint comes from another configuration: {', '.join(changed)} changed",
            where=str(path),
            do="Undo the change, or start a new run with init_from=RUN",
        )


def changes(planned: Plan, trained_with: Mapping[str, Any], may_change: Sequence[str] = config.MAY_CHANGE) -> list[str]:
    """The dotted keys in which a plan differs from what was trained with, apart from those that may change.

    ``trained_with`` is resolved anew, so that a key this version adds counts with its default.
    """
    if trained_with["trainer"]["kind"] != planned.data["trainer"]["kind"]:
        return ["trainer.kind"]
    if list(trained_with["plugins"]) != list(planned.data["plugins"]):
        return ["plugins"]
    before = config.resolve(config.load(trained_with), planned.activation, recorded=True).data
    return config.differing(before, planned.data, may_change)
