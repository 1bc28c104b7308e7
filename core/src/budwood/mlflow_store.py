"""What budwood says to MLflow, made safe to say twice. Imported by the tracking process only: mlflow takes seconds.

A metric point is (key, timestamp, step, value) to MLflow's database, and a point it already has is no second one; params
are compared before they are written; the run itself is found again by its tag and the millisecond it started.
"""

from __future__ import annotations

import getpass
import math
import posixpath
import re
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from budwood.journal import Event
from budwood.tracking import exclusive, sqlite_path

METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
NAME_LENGTH = 250
PARAM_LENGTH = 6000
TAG_LENGTH = 8000

STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class Store:
    """One MLflow run. ``uri`` may carry a password; a new SQLite file is created by one process at a time."""

    def __init__(self, uri: str) -> None:
        database = sqlite_path(uri)
        self._artifacts = (database.parent / "artifacts").as_uri() if database else None
        with ExitStack() as stack:
            if database:
                database.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive(database.with_name(f"{database.name}.lock"), wait=True))
            self.client = MlflowClient(uri)
            self.client.search_experiments(max_results=1)

    def open(self, run: Event) -> tuple[str, str]:
        """(experiment id, run id) of the run that the first ``run`` event describes, created if it is not there."""
        name, parent = run.data["name"], run.data["parent"]
        experiment = self._parents(parent) if parent else self._experiment(run.data["experiment"])
        for known in self.client.search_runs([experiment], f"attributes.start_time = {run.t}"):
            if known.data.tags.get("budwood.run") == name:
                return experiment, known.info.run_id
        tags = {"budwood.run": name, "mlflow.source.name": "budwood", "mlflow.source.type": "LOCAL"}
        if parent:
            tags["mlflow.parentRunId"] = parent
        if commit := run.data["tags"].get("git.commit"):
            tags["mlflow.source.git.commit"] = commit
        with suppress(KeyError, OSError):  # a container's user may have no name
            tags["mlflow.user"] = getpass.getuser()
        created = self.client.create_run(experiment, start_time=run.t, tags=tags, run_name=name)
        return experiment, created.info.run_id

    def describe(self, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Write params and tags. MLflow's params are immutable: a changed one becomes the tag ``resumed.<param>``."""
        known = self.client.get_run(run_id).data
        fresh: list[Param] = []
        changed: dict[str, str] = {}
        for key, value in params.items():
            key, value = safe_name(key), shorten(value, PARAM_LENGTH)
            if key not in known.params:
                fresh.append(Param(key, value))
            elif value != known.tags.get(f"resumed.{key}", known.params[key]):
                changed[f"resumed.{key}"] = value
        for start in range(0, len(fresh), PARAMS_PER_BATCH):
            self.client.log_batch(run_id, params=fresh[start : start + PARAMS_PER_BATCH])
        self.tags(run_id, {**tags, **changed})

    def tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        entities = [RunTag(safe_name(key), shorten(value, TAG_LENGTH)) for key, value in tags.items()]
        for start in range(0, len(entities), PARAMS_PER_BATCH):
            self.client.log_batch(run_id, tags=entities[start : start + PARAMS_PER_BATCH])

    def metrics(self, run_id: str, points: Iterable[tuple[str, float, int, int]]) -> None:
        """``points``: (name, value, unix milliseconds, step). NaN stays NaN; MLflow keeps inf as the largest double."""
        entities = [Metric(safe_name(key), value, t, step) for key, value, t, step in points]
        for start in range(0, len(entities), METRICS_PER_BATCH):
            self.client.log_batch(run_id, metrics=entities[start : start + METRICS_PER_BATCH])

    def lacks(self, run_id: str, points: Iterable[tuple[str, float, int, int]]) -> list[tuple[str, float, int, int]]:
        """Those of ``points`` that the store does not give back; when they were logged does not matter. NaN and inf count by
        their step alone, since MLflow keeps neither of them as it is in every store."""
        wanted: dict[str, list[tuple[str, float, int, int]]] = {}
        for point in points:
            wanted.setdefault(safe_name(point[0]), []).append(point)
        found: list[tuple[str, float, int, int]] = []
        for key, asked in wanted.items():
            history = self.client.get_metric_history(run_id, key)
            there, steps = {(item.step, item.value) for item in history}, {item.step for item in history}
            found += [
                point
                for point in asked
                if ((point[3], point[1]) not in there if math.isfinite(point[1]) else point[3] not in steps)
            ]
        return found

    def artifact(self, run_id: str, path: Path, into: str) -> None:
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), posixpath.join(into, path.name))
        else:
            self.client.log_artifact(run_id, str(path), into or None)

    def status(self, run_id: str, status: str, t: int) -> None:
        if status == "running":
            self.client.update_run(run_id, status=STATUS[status])
        else:
            self.client.set_terminated(run_id, STATUS[status], end_time=t)

    def _experiment(self, name: str) -> str:
        known: Any = self.client.get_experiment_by_name(name)
        if known is None:
            try:
                return str(self.client.create_experiment(name, artifact_location=self._artifacts))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                known = self.client.get_experiment_by_name(name)
        return str(known.experiment_id)

    def _parents(self, run_id: str) -> str:
        return str(self.client.get_run(run_id).info.experiment_id)


def safe_name(name: str) -> str:
    """``name`` as MLflow accepts it. A name that had to change ends in a digest, so that two never become one."""
    parts = (re.sub(r"[^\w.\- :]", "_", part) for part in name.split("/"))
    safe = "/".join(part for part in parts if part not in ("", ".", ".."))
    if name and safe == name and len(name) <= NAME_LENGTH:
        return name
    return f"{safe[: NAME_LENGTH - 9]}-{zlib.crc32(name.encode()):08x}"


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
