"""The life of a training run between two updates: callbacks, evaluations, checkpoints, and the wish to stop.

A trainer reports its boundaries here; everything budwood does during training happens at one of them, so a checkpoint
always holds a state from which the trainer can go on exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from budwood import across, evaluated, wishes
from budwood.api import (
    ALONE,
    BudwoodError,
    Contributed,
    Contributions,
    Evaluation,
    Evaluator,
    Measured,
    Processes,
    Rollout,
    RunCallback,
    RunControl,
    StateTree,
    StepBatch,
    Trainer,
    blamed,
)
from budwood.checkpoint import taking_up
from budwood.counting import EnvSteps
from budwood.outlets import Recorder, Screen
from budwood.progress import counting
from budwood.rhythm import Due, Rhythm
from budwood.stopwatch import Stopwatch


class Session:
    """Implements ``TrainerEvents`` for the trainer and ``RunControl`` for callbacks.

    ``save(steps)`` writes a checkpoint and returns its folder; None in a grafted script.
    ``restored`` is the state of an earlier session to continue from. Each of several ``processes`` has a session of its own;
    all of them decide alike, since they are told the same.
    """

    def __init__(
        self,
        trainer: Trainer,
        contributions: Contributions,
        recorder: Recorder,
        screen: Screen,
        rhythm: Rhythm,
        save: Callable[[Session], Path] | None = None,
        restored: StateTree | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.trainer = trainer
        self.control: RunControl = self
        self.contributions = contributions
        self.total_steps = trainer.total_steps
        self.n_envs = trainer.n_envs
        self.steps = 0
        self.evaluation_steps = 0
        self.latest: dict[str, float] = {}
        self.evaluations: list[tuple[int, Evaluation]] = []
        self._watch = Stopwatch("evaluation", "checkpoint", "callbacks")
        self._counts = EnvSteps(trainer, processes)
        self.notes: list[str] = []
        self.interrupted = False
        self._evaluated_at = -1
        self.ended_at = -1
        self._recorder, self._screen, self._rhythm, self._save = recorder, screen, rhythm, save
        self._restored, self._processes = restored, processes
        self._wishes = wishes.Wishes()
        self._watching = wishes.Watching(self)
        self._memories = across.Memories(contributions, processes)
        self._callbacks = self._memories.callbacks
        self._asked_by_all = bool(self._memories.called_by_all or contributions.evaluators)
        self._asked_to_stop = False
        self._evaluation = Due(rhythm.evaluate_every if rhythm.episodes else None)
        self._checkpoint = Due(rhythm.checkpoint_every if save else None)
        self._evaluators = [(item, Due(item.value.every)) for item in contributions.evaluators]
        self._muted = False
        self._watched = self._overridden("on_update_end") or self._overridden("on_rollout_end")
        self.next_boundary = 0

    # ---- RunControl: what a callback may ask for -------------------------------------------------------------------

    @property
    def env_steps(self) -> int:
        """Training and evaluation steps together: the budget methods are compared by."""
        return self._counts.trained + self.evaluation_steps

    @property
    def seconds(self) -> dict[str, float]:
        """Wall seconds of this session, by activity."""
        return self._watch.seconds

    @property
    def spent(self) -> bool:
        """Whether the budget of environment steps is used up. Only the last evaluation comes on top of it."""
        return self._rhythm.budget is not None and self.env_steps >= self._rhythm.budget

    @property
    def stopped(self) -> str | None:
        """Why a callback ended training, if one did."""
        return self._wishes.stopped

    @property
    def goes_on(self) -> bool:
        return self._unstopped and self.steps < self.total_steps

    @property
    def _unstopped(self) -> bool:
        return self.stopped is None and not self.interrupted and not self.spent

    @property
    def trained(self) -> bool:
        """No step is left, whether somebody interrupts or not."""
        return self.steps >= self.total_steps or self.stopped is not None or self.spent

    @property
    def cut_short(self) -> bool:
        """Interrupted before the last step, or before what comes after it was over."""
        return self.interrupted and not (self.trained and self.ended_at == self.steps)

    def log(self, metrics: Mapping[str, float], steps: int | None = None) -> None:
        if self._muted:
            return
        self.latest.update(metrics)
        self._recorder.metrics(metrics, self.steps if steps is None else steps)
        self._screen.update(self.steps if steps is None else steps, self.latest)

    def evaluate(self, episodes: int, seed: int, observer: Callable[[StepBatch], None] | None = None) -> Evaluation:
        self._screen.phase("evaluating")
        here = counting(self._screen)
        with self._watch.timed("evaluation"):
            evaluation = across.play(self.trainer, self._processes, episodes, seed, observer, here)
        self._screen.phase("")
        self.evaluation_steps += evaluation.env_steps
        return evaluation

    def reset_policy(self, seed: int) -> None:
        self._wishes.reset(seed)
        self.next_boundary = 0

    def policy_state(self) -> StateTree:
        return self.trainer.policy_state()

    def load_policy(self, state: StateTree) -> None:
        self.trainer.load_policy(state)
        self._evaluated_at = -1
        for _, due in self._evaluators:
            due.last = -1

    def checkpoint(self) -> None:
        if self._save is not None:
            self._wishes.save()
            self.next_boundary = 0

    def stop(self, reason: str) -> None:
        self._wishes.stop(reason)
        self.next_boundary = 0

    def note(self, text: str) -> None:
        if not self._muted:
            self.notes.append(text)

    # ---- TrainerEvents: what the trainer reports -------------------------------------------------------------------

    def start(self) -> bool:
        self._muted = self._restored is not None
        self._tell("on_run_start")
        self._muted = False
        if self._restored is not None:
            with taking_up(f"the session of the checkpoint of step {self._restored.get('steps')}"):
                self._load_state(self._restored)
            self._restored = None
        self._counts.begin()
        self._hear()
        return self._goes_on()

    def wants_rollouts(self) -> bool:
        return self._overridden("on_rollout_end")

    def rollout_end(self, rollout: Rollout) -> None:
        self._tell("on_rollout_end", rollout)

    def measured(self, metrics: Mapping[str, float], steps: int) -> None:
        self._advance(steps)
        self._tell("on_eval_metrics", metrics)

    def _advance(self, steps: int) -> None:
        self._counts.advance(steps - self.steps)
        self.steps = steps

    def boundary(self, steps: int) -> bool:
        self._agree()
        if steps > self.steps:
            self._advance(steps)
            self._work()
        return self._goes_on()

    def finish(self) -> None:
        """After training: the last evaluation, evaluators and checkpoint, unless this instant already has them.

        Callbacks come first: what is evaluated is the policy that the run leaves behind.
        """
        self._agree()
        if not self.interrupted and self.ended_at != self.steps:
            try:
                self._tell("on_run_end")
            except BudwoodError:  # a resume from here tells of the end again; of several, the others would not save too
                if self._save is not None and not self._processes.several:
                    self._save_now()
                raise
            if self._rhythm.episodes and self._evaluated_at != self.steps:
                self._evaluate_now()
            for item, due in self._evaluators:
                if due.last != self.steps:
                    self._run_evaluator(item)
            self.ended_at = self.steps
        self._hear()
        if self._save is not None:
            self._save_now()
        self._recorder.flush()

    def interrupt(self) -> None:
        """Checkpoint and stop at the next boundary. Safe to call from a signal handler."""
        self._asked_to_stop = True
        self.interrupted = not self._processes.several  # several stop at the boundary where all have heard of it
        self.next_boundary = 0

    @property
    def interrupting(self) -> bool:
        return self.interrupted or self._asked_to_stop

    def _agree(self) -> None:
        if self._processes.several:
            together = self._processes.gather((self._asked_to_stop, self._wishes.made()))
            self.interrupted = any(asked for asked, _ in together)
            wishes.check([made for _, made in together], self._when)
            self._memories.synchronise()

    def _hear(self) -> None:
        """What callbacks have just asked for is what they asked for in every process."""
        if self._processes.several and self._asked_by_all:
            wishes.check(self._processes.gather(self._wishes.made()), self._when)

    # ---- at a boundary ---------------------------------------------------------------------------------------------

    def _goes_on(self) -> bool:
        """Whether there is anything left to train. A policy is reset last of all and only then, so that what is evaluated,
        saved and exported at this boundary is the one that was trained."""
        if self.goes_on and self._wishes.reset_seed is not None:
            self.trainer.reset_policy(self._wishes.reset_seed)
            self._wishes.reset_seed = None
        self._plan()
        return self._unstopped

    def _work(self) -> None:
        self._tell("on_update_end")
        if self.steps >= self._evaluation.next:
            self._evaluation.advance(self.steps)
            self._evaluate_now()
        for evaluator, due in self._evaluators:
            if self.steps >= due.next:
                due.advance(self.steps)
                self._run_evaluator(evaluator)
        self._hear()
        if self.steps >= self._checkpoint.next or self._wishes.checkpoint:
            self._save_now()
        self._recorder.flush()

    def _plan(self) -> None:
        events = [self._evaluation.next, self._checkpoint.next, *(due.next for _, due in self._evaluators)]
        if self._rhythm.budget is not None:
            events.append(self.steps + self._counts.left(self._rhythm.budget - self.evaluation_steps))
        self.next_boundary = min(events)
        # After the line above: a signal that comes between the two is seen here. Rollouts need to know their step.
        asked = self._wishes.checkpoint or self._wishes.reset_seed is not None
        if self._watched or asked or self.interrupting or self.stopped is not None or self._processes.several:
            self.next_boundary = 0

    def _evaluate_now(self) -> None:
        self._evaluated_at = self.steps
        if isinstance(self.trainer, Measured):
            self._measure_now(self.trainer)
            return
        evaluation = self.evaluate(self._rhythm.episodes, self._rhythm.evaluation_seed)
        self.evaluations.append((self.steps, evaluation))
        self.log(evaluated.metrics(evaluation, self.env_steps))
        self._tell("on_eval", evaluation)

    def _measure_now(self, trainer: Measured) -> None:
        self._screen.phase("evaluating")
        with self._watch.timed("evaluation"):
            metrics = trainer.measure()
        self._screen.phase("")
        if metrics:
            self.log(metrics)
            self.measured(metrics, self.steps)

    def _run_evaluator(self, item: Contributed[Evaluator]) -> None:
        with self._blaming(item, f"evaluator {item.value.name}"), self._watch.timed("evaluation"):
            report = item.value.run(self)
        self.log({f"{item.plugin}/{key}": value for key, value in report.metrics.items()})

    def _save_now(self) -> None:
        assert self._save is not None
        self._wishes.checkpoint = False
        self._checkpoint.advance(self.steps)
        self._screen.phase("saving a checkpoint")
        with self._watch.timed("checkpoint"):
            folder = self._save(self)
        self._screen.phase("")
        self._tell("on_checkpoint", folder)
        self._hear()

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> StateTree:
        """Counters and schedules of this session, every callback's state, and every stateful reward's."""
        return {
            "steps": self.steps,
            "evaluation_steps": self.evaluation_steps,
            "env_steps": self.env_steps,
            "ended_at": self.ended_at,
            "stopped": self.stopped,
            "reset_seed": self._wishes.reset_seed,
            "evaluated_at": self._evaluated_at,
            "evaluators": [due.last for _, due in self._evaluators],
            "latest": dict(self.latest),
            "evaluations": evaluated.saved(self.evaluations),
            **self._memories.state_dict(self._when),
        }

    def _load_state(self, state: StateTree) -> None:
        self.steps = state["steps"]
        self.evaluation_steps = state["evaluation_steps"]
        self._counts.trained = state.get("env_steps", self.steps + self.evaluation_steps) - self.evaluation_steps
        self.ended_at = state["ended_at"]
        self._wishes.stopped = self.stopped or state["stopped"]
        self._wishes.reset_seed = state["reset_seed"]
        self._evaluated_at = state["evaluated_at"]
        self.latest = dict(state["latest"])
        self.evaluations = evaluated.loaded(state["evaluations"])
        self._memories.load_state_dict(state, self._when)
        for due in (self._evaluation, self._checkpoint, *(due for _, due in self._evaluators)):
            due.advance(self.steps)
        for (_, due), last in zip(self._evaluators, state["evaluators"], strict=True):
            due.last = last

    # ---- helpers ---------------------------------------------------------------------------------------------------

    @property
    def _when(self) -> str:
        return f"step {self.steps}"

    def _overridden(self, event: str) -> bool:
        """By a callback of the run, also by one that another process calls: rollouts are gathered from all or from none."""
        base = getattr(RunCallback, event)
        return any(getattr(type(item.value), event, base) is not base for item in self.contributions.callbacks)

    def _tell(self, event: str, *facts: Any) -> None:
        for item in self._callbacks:
            control = self._watching if across.only_watches(item.value) else self.control
            with self._blaming(item, event), self._watch.timed("callbacks"):
                getattr(item.value, event)(control, *facts)

    @contextmanager
    def _blaming(self, item: Contributed[Any], what: str) -> Iterator[None]:
        self._wishes.asking = item
        try:
            with blamed(item, what, self._when):
                yield
        finally:
            self._wishes.asking = None
