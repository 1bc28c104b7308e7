"""The loop around LeRobot's ``update_policy``, and the training as core drives it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.scripts.lerobot_train import update_policy
from lerobot.utils.constants import PRETRAINED_MODEL_DIR
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

from budwood.api import ContributionError, Contributions, Evaluation, StateTree, StepBatch, TrainerEvents, copied
from budwood.api.generators import generators, set_aside, set_generators
from budwood_lerobot import state
from budwood_lerobot.blocks import Blocks
from budwood_lerobot.config import EnvConfig
from budwood_lerobot.evaluation import played

METERS = ("loss", "grad_norm", "lr", "update_s", "dataloading_s", "samples_per_s")


class OfflineTrainer:
    """Implements :class:`budwood.api.Trainer` around LeRobot's building blocks.

    ``fresh`` makes a new policy like the one that is trained. ``env``: where episodes are played, None for no episodes.
    ``may_reset``: keep parameters that were loaded before training, for :meth:`reset_policy`. ``evaluated``: an evaluation is
    due before the end. ``notes``: what a person should know before it begins.
    """

    n_envs = 1

    def __init__(
        self,
        blocks: Blocks,
        *,
        total_steps: int,
        fresh: Callable[[], Any],
        env: EnvConfig | None = None,
        may_reset: bool = False,
        evaluation_seed: int = 0,
        evaluated: bool = False,
        notes: Sequence[str] = (),
    ) -> None:
        self.blocks = blocks
        self.total_steps = total_steps
        self.step = 0
        self.tracker = self._tracker()
        self._fresh, self._env, self._may_reset = fresh, env, may_reset
        self._evaluation_seed, self._evaluated, self._notes = evaluation_seed, evaluated, notes
        self._first: StateTree | None = None
        self._generators = generators()
        self._training = False

    @property
    def native(self) -> Any:
        """LeRobot's policy."""
        return self.blocks.accelerator.unwrap_model(self.blocks.policy)

    def _tracker(self) -> MetricsTracker:
        names = (*METERS, "gpu_mem_gb") if torch.cuda.is_available() else METERS
        rows = self.blocks.dataset
        return MetricsTracker(
            self.blocks.config.batch_size,
            rows.num_frames,
            rows.num_episodes,
            {name: AverageMeter(name) for name in names},
            initial_step=self.step,
            accelerator=self.blocks.accelerator,
        )

    # ---- training --------------------------------------------------------------------------------------------------

    def fit(self, events: TrainerEvents) -> None:
        if not events.start() or self.step >= self.total_steps:
            return
        self._training = True
        for note in self._notes:
            events.control.note(note)
        if self._evaluated and self._env is None and self.blocks.held_out is None:
            events.control.note(
                "There is no env and no held-out row: evaluation.every does nothing. Name env.type or dataset.eval_split."
            )
        batches = self._batches()
        goes_on = True
        while goes_on and self.step < self.total_steps:
            self._learn(batches)
            self._tell(events)
            if self.step >= events.next_boundary:
                goes_on = events.boundary(self.step)
        events.boundary(self.step)

    def _batches(self) -> Iterator[Any]:
        """Raw batches without end. Generators are put back to where the last boundary left them.

        Making a loader's iterator draws from torch's generator. Amid an epoch that has happened already.
        """
        if self.blocks.at_epoch(self.step):
            set_generators(self._generators)
            epoch = self.blocks.batches(self.step)
        else:
            epoch = self.blocks.batches(self.step)
            set_generators(self._generators)
        while True:
            yield from epoch
            epoch = iter(self.blocks.loader)

    def _learn(self, batches: Iterator[Any]) -> None:
        blocks = self.blocks
        began = time.perf_counter()
        batch = blocks.prepared(next(batches))
        blocks.learn_from(self.step)
        self.tracker.dataloading_s = time.perf_counter() - began
        update_policy(
            self.tracker,
            blocks.policy,
            batch,
            blocks.optimizer,
            blocks.config.optimizer.grad_clip_norm,
            accelerator=blocks.accelerator,
            lr_scheduler=blocks.scheduler,
        )
        self.step += 1
        self.tracker.step()

    def _tell(self, events: TrainerEvents) -> None:
        """LeRobot's averages since the last time, every ``log_freq`` steps."""
        every = self.blocks.config.log_freq
        if every <= 0 or self.step % every:
            return
        seconds = self.tracker.update_s.avg + self.tracker.dataloading_s.avg
        self.tracker.samples_per_s = self.blocks.config.batch_size / seconds
        found = self.tracker.to_dict()
        if self.blocks.processes.several:
            found["loss"] = float(np.mean(self.blocks.processes.gather(found["loss"])))
        events.log({f"train/{name}": float(value) for name, value in found.items() if name != "steps"}, self.step)
        self.tracker.reset_averages()

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def evaluate(self, episodes: int, seed: int, observer: Callable[[StepBatch], None] | None = None) -> Evaluation:
        """``episodes`` of every task in the environments of ``env``, played by LeRobot's own evaluation.

        :raises ContributionError: the run has no environment.
        """
        if self._env is None:
            raise ContributionError(
                "this run has no environment to play episodes in",
                where="env",
                do="Name one, such as env: {type: pusht}, or use on_eval_metrics of a callback",
            )
        blocks = self.blocks
        with set_aside(seed), blocks.accelerator.autocast():
            evaluation = played(
                self._env, self.native, blocks.preprocessor, blocks.postprocessor, episodes, seed, observer
            )
        return replace(evaluation, metrics={**evaluation.metrics, **self._held_out_loss()})

    def _held_out_loss(self) -> dict[str, float]:
        """The policy's own loss on held-out rows, averaged over batches as LeRobot does; empty without such rows."""
        blocks = self.blocks
        if blocks.held_out is None:
            return {}
        policy = self.native  # not what exchanges gradients, and with them buffers
        training = policy.training
        policy.eval()
        with set_aside(self._evaluation_seed), torch.no_grad(), blocks.accelerator.autocast():
            losses = [policy.forward(blocks.prepared(batch))[0].item() for batch in blocks.held_out]
        policy.train(training)
        return {"loss": sum(losses) / len(losses)}

    # ---- state -----------------------------------------------------------------------------------------------------

    def reset_policy(self, seed: int) -> None:
        """A policy drawn anew, or the one of ``trainer.policy.path``, or that of ``init_from``. The optimiser forgets."""
        if self._first is not None:
            self.load_policy(self._first)
        else:
            with set_aside(seed):
                state.load_parameters(self.native, state.parameters(self._fresh()))
        self.blocks.optimizer.optimizer.state.clear()

    def state_dict(self) -> StateTree:
        scheduler = self.blocks.scheduler
        saved = {
            **self.policy_state(),
            "optimizer": copied(self.blocks.optimizer.state_dict()),
            "scheduler": None if scheduler is None else copied(scheduler.state_dict()),
            "step": self.step,
            "meters": state.meters(self.tracker),
            "generators": generators() if self._training else self._generators,
            "first": self._first,
        }
        return state.joined(saved, self.blocks.processes)

    def load_state_dict(self, saved: StateTree) -> Sequence[str]:
        state.load_parameters(self.native, saved["policy"])
        state.load_optimizer(self.blocks.optimizer, self.blocks.scheduler, saved)
        own, notes = state.own(saved, self.blocks.processes)
        self.step, self._first = saved["step"], saved["first"]
        self._generators = own.get("generators", self._generators)
        self.tracker = self._tracker()
        state.load_meters(self.tracker, own["meters"])
        config = self.blocks.config
        if config.num_workers > 0 and config.dataset.image_transforms.enable:
            notes.append("Workers transform images at random, and their generators begin anew.")
        return notes

    def policy_state(self) -> StateTree:
        return {"policy": state.parameters(self.native)}

    def load_policy(self, saved: StateTree) -> None:
        state.load_parameters(self.native, saved["policy"], "init_from")
        if not self._training and self._may_reset:
            self._first = {"policy": saved["policy"]}

    def export(self, folder: Path) -> Path:
        """``pretrained_model`` as LeRobot's own checkpoints have it: for ``--policy.path`` of its commands."""
        target: Path = folder / PRETRAINED_MODEL_DIR
        self.native.save_pretrained(target)
        self.blocks.config.save_pretrained(target)
        self.blocks.preprocessor.save_pretrained(target)
        self.blocks.postprocessor.save_pretrained(target)
        return target

    def close(self) -> None: ...


class HeldOutTrainer(OfflineTrainer):
    """Without an environment: evaluated by its loss on held-out rows (:class:`budwood.api.Measured`)."""

    def measure(self) -> Mapping[str, float]:
        return {f"eval/{name}": value for name, value in self._held_out_loss().items()}


def may_reset(contributions: Contributions) -> bool:
    """Whether anybody gets hold of a control, by which a policy can be reset."""
    return bool(contributions.callbacks or contributions.evaluators)
