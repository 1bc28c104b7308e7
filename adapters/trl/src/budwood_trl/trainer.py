"""A trainer of TRL with the contributions of a run bound to its seams, as core drives it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from budwood.api import (
    ALONE,
    Contributed,
    ContributionError,
    Contributions,
    Evaluation,
    Processes,
    StateTree,
    StepBatch,
    TrainerEvents,
    WeightVector,
)
from budwood.api.generators import set_aside, set_generators
from budwood_models.language_model import quiet
from budwood_trl import state
from budwood_trl.bridge import Bridge, StopTraining, is_number
from budwood_trl.dealing import Deal
from budwood_trl.rewards import Columns, batch_width, step_batch, untouched

SPEED = ("model_preparation_time", "runtime", "samples_per_second", "steps_per_second")


class TRLTrainer:
    """Implements :class:`budwood.api.Trainer` and :class:`budwood.api.Measured` around ``native``, a trainer of TRL.

    ``may_reset``: keep the first parameters, for :meth:`reset_policy`. ``evaluation_seed`` drives what an evaluation samples.
    ``unevaluated``: evaluations are due, and there are no rows for them.
    """

    n_envs = 1
    evaluates_together = True

    def __init__(
        self,
        native: Any,
        columns: Columns | None,
        *,
        total_steps: int,
        may_reset: bool = False,
        evaluation_seed: int = 0,
        unevaluated: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        self.native = native
        self._processes = processes
        self.total_steps = total_steps
        self.columns = columns
        self._weights: WeightVector | None = None if columns is None else columns.follow(native)
        self._evaluation_seed, self._unevaluated = evaluation_seed, unevaluated
        self._first = self.policy_state() if may_reset else None
        self._warm = False
        self._loaded: StateTree | None = None
        self._restored: StateTree | None = None
        self._bridge: Bridge | None = None

    # ---- training --------------------------------------------------------------------------------------------------

    def fit(self, events: TrainerEvents) -> None:
        if self._restored is not None and self._restored["progress"]["global_step"] >= self.total_steps:
            events.start()
            return
        if self._unevaluated:
            events.control.note("No rows are held out: evaluation.every does nothing. Name rows under dataset.eval.")
        self.attach(events)
        if getattr(self.native.args, "log_completions", False):
            Path(self.native.args.output_dir, "completions").mkdir(parents=True, exist_ok=True)
        with suppress(StopTraining), self._resuming() as folder:
            self.native.train(resume_from_checkpoint=folder)

    def attach(self, events: TrainerEvents, *, tells: bool = True) -> Bridge:
        """Report the boundaries of ``native`` to ``events`` from now on."""
        self._bridge = Bridge(events, self._begin, self._follow, tells)
        self.native.add_callback(self._bridge)
        return self._bridge

    @contextmanager
    def _resuming(self) -> Iterator[str | None]:
        """The folder that ``train`` is told to resume from: it holds how far the run had come, and nothing else is read."""
        restored, native = self._restored, self.native
        if restored is None:
            yield None
            return
        set_generators(restored["rows_by"])  # accelerate takes the order of rows from the seed of torch's generator
        cls = type(native)
        native.__class__ = type(cls.__name__, (state.Resumed, cls), {"_resumed": restored})
        try:
            with tempfile.TemporaryDirectory(prefix="budwood-") as folder:
                native.state.__class__(**restored["progress"]).save_to_json(f"{folder}/trainer_state.json")
                yield folder
        finally:
            native.__class__ = cls

    def _begin(self) -> None:
        if self._restored is not None:
            state.restore_log(self.native, self._restored)
            self._restored = self._loaded = None

    def _follow(self) -> None:
        if self._weights is not None:
            self._weights.follow()

    @property
    def _contributed(self) -> Sequence[Contributed[Any]]:
        return () if self.columns is None else self.columns.contributed

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def measure(self) -> Mapping[str, float]:
        """TRL's own evaluation of the held-out rows, ``eval/`` before its names."""
        if self.native.eval_dataset is None:
            return {}
        self._follow()
        with set_aside(self._evaluation_seed), untouched(self._contributed):
            found = self.native.evaluate()
        return measured(found)

    def evaluate(self, episodes: int, seed: int, observer: Callable[[StepBatch], None] | None = None) -> Evaluation:
        """Complete ``episodes`` prompts of the held-out rows, or of the training rows if there are none.

        A completion is an episode of one step; its return is the weighted reward, and it costs no environment step.

        :raises ContributionError: this trainer writes no completions.
        """
        if self.columns is None:
            raise ContributionError(
                f"{type(self.native).__name__} has no episodes: it is evaluated by its loss on held-out rows",
                do="Name such rows, dataset.eval=FILE; budwood eval takes that too, and callbacks hear by on_eval_metrics",
            )
        self._follow()
        rows = self.native.eval_dataset or self.native.train_dataset
        width = batch_width(self.native.args)
        returns: list[float] = []
        with set_aside(seed), untouched(self._contributed), _in_evaluation(self.native):
            for first in range(0, episodes, width):
                count = min(width, episodes - first)
                returns += self._completed([dict(rows[(first + i) % len(rows)]) for i in range(count)])
                if observer is not None:
                    observer(step_batch(self.columns.board, range(count), first))
        return Evaluation(np.array(returns), np.ones(episodes, dtype=np.int64), 0, seed)

    def _completed(self, inputs: list[dict[str, Any]]) -> list[float]:
        """Weighted rewards of one completion for each row."""
        prompts = [row["prompt"] for row in inputs]
        # GRPO: prompt ids, ids, tool mask, completions, log probs, a rollout's columns, ...; RLOO: prompt ids, ids, completions
        generated = self.native._generate(prompts)
        completions = generated[3] if len(generated) > 3 else generated[2]
        for name, values in generated[5].items() if len(generated) > 5 else ():
            for row, value in zip(inputs, values, strict=True):
                row[name] = value
        rewards = self.native._calculate_rewards(inputs, prompts, completions, generated[1])
        own = rewards[self._processes.part(len(rewards))]  # every process has completed the same rows
        weighted: list[float] = (own * self.native.reward_weights.to(own.device)).nansum(dim=1).tolist()
        return weighted

    # ---- state -----------------------------------------------------------------------------------------------------

    def reset_policy(self, seed: int) -> None:
        """Back to the parameters that the run began with; they are the same for every seed. The optimiser forgets."""
        assert self._first is not None, "kept wherever somebody could ask"
        self.load_policy(self._first)
        optimizer = self.native.optimizer
        getattr(optimizer, "optimizer", optimizer).state.clear()

    def state_dict(self) -> StateTree:
        if self._restored is not None:
            assert self._loaded is not None, "taken up from it"
            return self._loaded
        logged = self._bridge is not None and self._bridge.logged
        saved = {**state.trainer_state(self.native, logged), "first": self._first if self._warm else None}
        return state.joined(saved, self._processes)

    def load_state_dict(self, saved: StateTree) -> Sequence[str]:
        self._loaded, args = saved, self.native.args
        here = Deal(args.per_device_train_batch_size, args.gradient_accumulation_steps, self._processes.count)
        notes = state.check_dealt(self.native, saved, here)
        self._restored = saved = state.own(saved, here, self._processes.rank, args.seed)
        state.restore(self.native, saved)
        if saved["first"] is not None:
            self._first, self._warm = saved["first"], True
        return [*saved["notes"], *notes, *state.lengthened(self.native, saved, self.total_steps)]

    def policy_state(self) -> StateTree:
        return {"policy": state.policy_state(self.native.accelerator.unwrap_model(self.native.model))}

    def load_policy(self, saved: StateTree) -> None:
        """Before training they become the first parameters; amid it, completions in hand are another policy's and go."""
        state.load_policy(self.native.accelerator.unwrap_model(self.native.model), saved["policy"], "init_from")
        if self._bridge is None and self._first is not None:
            self._first, self._warm = self.policy_state(), True
        if hasattr(self.native, "_buffered_inputs"):
            self.native._buffered_inputs = None

    def export(self, folder: Path) -> Path:
        """The model and the tokenizer as transformers saves them (with PEFT the adapter alone), and ``rewards.json``."""
        target = folder / "model"
        target.mkdir(parents=True, exist_ok=True)
        with quiet():
            self.native.accelerator.unwrap_model(self.native.model).save_pretrained(target)
            self.native.processing_class.save_pretrained(target)
        if self.columns is not None:
            columns = [{"name": column.name, "declared_weight": column.weight} for column in self.columns.columns]
            (folder / "rewards.json").write_text(json.dumps(columns, indent=2) + "\n")
        return target

    def close(self) -> None: ...


def measured(found: Mapping[str, Any]) -> dict[str, float]:
    """What TRL's evaluation found, under our names and without what a clock decides."""
    named = {name.removeprefix("eval_"): value for name, value in found.items() if is_number(value)}
    return {f"eval/{name}": float(value) for name, value in named.items() if name not in (*SPEED, "epoch")}


def may_reset(contributions: Contributions) -> bool:
    """Whether anybody gets hold of a control, by which a policy can be reset."""
    return bool(contributions.callbacks or contributions.evaluators)


@contextmanager
def _in_evaluation(native: Any) -> Iterator[None]:
    """Evaluation mode, whose numbers TRL is not to log."""
    training = native.model.training
    native.model.eval()
    try:
        yield
    finally:
        native.model.train(training)
        native._metrics["eval"].clear()
        native._pending_metrics.clear()
        native._pending_extra_logs.clear()
