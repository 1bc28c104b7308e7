"""What happens at a boundary, in which order, and that a session continues where a saved one stood."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from budwood.api import (
    CheckpointError,
    CompletionReward,
    Contributed,
    ContributionError,
    Contributions,
    EvalReport,
    Evaluation,
    Evaluator,
    RewardTerm,
    RunCallback,
    RunControl,
    StateTree,
    StepBatch,
)
from budwood.rhythm import NEVER, Rhythm
from budwood.session import Session


class Counter:
    """A trainer whose policy is the number of steps taken; a boundary every 10 steps."""

    n_envs = 1
    native = None

    def __init__(self, total_steps: int = 100) -> None:
        self.total_steps = total_steps
        self.steps = 0
        self.resets: list[int] = []

    def fit(self, events: Session) -> None:
        if not events.start():
            return
        while self.steps < self.total_steps:
            self.steps += 10
            if self.steps >= events.next_boundary and not events.boundary(self.steps):
                return

    def evaluate(self, episodes: int, seed: int, observer: Any = None) -> Evaluation:
        del observer
        return Evaluation(np.full(episodes, float(self.steps)), np.ones(episodes, dtype=int), episodes * 5, seed)

    def reset_policy(self, seed: int) -> None:
        self.resets.append(seed)

    def policy_state(self) -> StateTree:
        return {"resets": list(self.resets)}

    def load_policy(self, state: StateTree) -> None:
        self.resets = list(state["resets"])


class Memory:
    """A recorder and a screen."""

    shown = False

    def __init__(self) -> None:
        self.records: list[tuple[int, dict[str, float]]] = []
        self.phases: list[str] = []

    def metrics(self, data: Mapping[str, float], step: int) -> None:
        self.records.append((step, dict(data)))

    def flush(self) -> None: ...

    def update(self, steps: int, metrics: Mapping[str, float]) -> None: ...

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def message(self, text: str) -> None: ...


class Spy(RunCallback):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_run_start(self, control: RunControl) -> None:
        self.seen.append("start")
        control.log({"spy/start": 1.0})

    def on_update_end(self, control: RunControl) -> None:
        self.seen.append(f"update {control.steps}")

    def on_eval(self, control: RunControl, evaluation: Evaluation) -> None:
        self.seen.append(f"eval {control.steps}")

    def on_checkpoint(self, control: RunControl, folder: Path) -> None:
        self.seen.append(f"checkpoint {control.steps}")

    def on_run_end(self, control: RunControl) -> None:
        self.seen.append("end")
        control.note("seen to the end")

    def state_dict(self) -> StateTree:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: StateTree) -> None:
        self.seen = list(state["seen"])


class Silent(RunCallback):
    """Overrides nothing, so it must cost nothing."""


def owned[T](value: T, plugin: str = "spy") -> Contributed[T]:
    return Contributed(value, plugin, f"budwood-{plugin} 1.0")


def session(
    trainer: Counter,
    *callbacks: RunCallback,
    rhythm: Rhythm | None = None,
    saves: list[StateTree] | None = None,
    **kw: Any,
) -> tuple[Session, Memory]:
    memory = Memory()
    contributions = kw.pop("contributions", Contributions(callbacks=[owned(c) for c in callbacks]))

    def save(at: Session) -> Path:
        assert saves is not None
        saves.append(at.state_dict())
        return Path("checkpoint")

    made = Session(
        trainer, contributions, memory, memory, rhythm or Rhythm(), save if saves is not None else None, **kw
    )  # type: ignore[arg-type]
    return made, memory


def test_order_at_a_boundary_is_update_evaluation_checkpoint() -> None:
    trainer, spy, saves = Counter(40), Spy(), []
    made, _ = session(trainer, spy, rhythm=Rhythm(20, 2, 7, 40), saves=saves)
    trainer.fit(made)  # type: ignore[arg-type]
    made.finish()
    assert spy.seen == [
        "start", "update 10", "update 20", "eval 20", "update 30", "update 40", "eval 40", "checkpoint 40", "end",
        "checkpoint 40",
    ]  # fmt: skip
    assert made.env_steps == 40 + 2 * 2 * 5


def test_nothing_due_means_the_trainer_need_not_call() -> None:
    trainer = Counter()
    made, _ = session(trainer, Silent())
    made.start()
    assert made.next_boundary == NEVER
    assert not made.wants_rollouts()


def test_evaluation_is_logged_with_spread_and_budget() -> None:
    trainer = Counter(20)
    made, memory = session(trainer, rhythm=Rhythm(20, 4))
    trainer.fit(made)  # type: ignore[arg-type]
    made.finish()
    assert [step for step, _ in memory.records] == [20], "the last evaluation is not made twice"
    assert memory.records[0][1]["eval/return_mean"] == 20.0
    assert memory.records[0][1]["eval/env_steps"] == 40.0


class Succeeding(Counter):
    """Measures more than returns."""

    def evaluate(self, episodes: int, seed: int, observer: Any = None) -> Evaluation:
        return replace(super().evaluate(episodes, seed, observer), metrics={"success_rate": self.steps / 100})


def test_what_else_a_trainer_measures_is_logged_and_kept() -> None:
    trainer = Succeeding(20)
    made, memory = session(trainer, rhythm=Rhythm(20, 4))
    trainer.fit(made)  # type: ignore[arg-type]
    assert memory.records[0][1]["eval/success_rate"] == 0.2
    again, _ = session(Succeeding(40), rhythm=Rhythm(20, 4), restored=made.state_dict())
    again.start()
    assert again.evaluations[0][1].metrics == {"success_rate": 0.2}


class Measuring(Counter):
    """Evaluates by a loss of its own, on a batch that it may lack."""

    held_out = True

    def measure(self) -> dict[str, float]:
        return {"eval/loss": 1.0 / self.steps} if self.held_out else {}


class Losses(RunCallback):
    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_eval_metrics(self, control: RunControl, metrics: Mapping[str, float]) -> None:
        self.seen.append((control.steps, metrics["eval/loss"]))

    def on_eval(self, control: RunControl, evaluation: Evaluation) -> None:
        raise AssertionError("there are no episodes")


def test_a_trainer_with_numbers_of_its_own_is_measured_and_its_callbacks_are_told() -> None:
    trainer, losses = Measuring(40), Losses()
    made, memory = session(trainer, losses, rhythm=Rhythm(20, 1))
    trainer.fit(made)  # type: ignore[arg-type]
    made.finish()
    assert losses.seen == [(20, 0.05), (40, 0.025)], "the last one is not made twice"
    assert memory.records == [(20, {"eval/loss": 0.05}), (40, {"eval/loss": 0.025})]
    assert (made.evaluations, made.env_steps) == ([], 40)

    trainer = Measuring(40)
    trainer.held_out = False
    made, memory = session(trainer, losses, rhythm=Rhythm(20, 1))
    trainer.fit(made)  # type: ignore[arg-type]
    made.finish()
    assert (len(losses.seen), memory.records) == (2, [])


def test_a_completion_rewards_state_is_in_the_checkpoint() -> None:
    class Mean:
        def __init__(self, value: float) -> None:
            self.value = value

        def state_dict(self) -> StateTree:
            return {"value": self.value}

        def load_state_dict(self, state: StateTree) -> None:
            self.value = state["value"]

    saves: list[StateTree] = []
    first, second = Mean(3.0), Mean(0.0)

    def holding(mean: Mean) -> Contributions:
        return Contributions(completion_rewards=[owned(CompletionReward("length", lambda c: [], state=mean))])

    made, _ = session(Counter(), saves=saves, rhythm=Rhythm(None, 0, 0, 10), contributions=holding(first))
    made.boundary(10)
    made.finish()
    again, _ = session(Counter(), saves=[], restored=saves[-1], contributions=holding(second))
    again.start()
    assert second.value == 3.0


def test_evaluator_runs_when_due_and_once_at_the_end() -> None:
    calls: list[int] = []

    def measure(control: RunControl) -> EvalReport:
        calls.append(control.steps)
        return EvalReport({"score": float(control.steps)})

    trainer = Counter(50)
    made, memory = session(trainer, contributions=Contributions(evaluators=[owned(Evaluator("probe", 20, measure))]))
    trainer.fit(made)  # type: ignore[arg-type]
    trainer.steps = 50
    made.boundary(50)
    made.finish()
    assert calls == [20, 40, 50]
    assert memory.records[-1] == (50, {"spy/score": 50.0})


def test_a_callback_can_stop_and_ask_for_a_checkpoint() -> None:
    class Stopper(RunCallback):
        def on_update_end(self, control: RunControl) -> None:
            if control.steps == 30:
                control.checkpoint()
                control.stop("enough")

    trainer, saves = Counter(), []
    made, _ = session(trainer, Stopper(), saves=saves)
    trainer.fit(made)  # type: ignore[arg-type]
    assert (trainer.steps, made.stopped) == (30, "enough")
    assert [s["steps"] for s in saves] == [30]


class Resetter(RunCallback):
    """Asks for a reset at every update; what it evaluates and saves is still the trained policy."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at

    def on_update_end(self, control: RunControl) -> None:
        control.reset_policy(control.steps)
        if control.steps == self.stop_at:
            control.stop("enough")


def test_a_reset_comes_last_at_its_boundary_and_only_if_training_goes_on() -> None:
    class Looks(RunCallback):
        def on_eval(self, control: RunControl, evaluation: Evaluation) -> None:
            resets_at_evaluation.append(list(trainer.resets))

    resets_at_evaluation: list[list[int]] = []
    trainer = Counter(40)
    made, _ = session(trainer, Resetter(), Looks(), rhythm=Rhythm(20, 1))
    trainer.fit(made)  # type: ignore[arg-type]
    made.finish()
    assert resets_at_evaluation == [[10], [10, 20, 30]]
    assert trainer.resets == [10, 20, 30], "after the last update there is nothing to be fresh for"

    stopped = Counter(40)
    made, _ = session(stopped, Resetter(stop_at=20))
    stopped.fit(made)  # type: ignore[arg-type]
    assert stopped.resets == [10]


def test_a_reset_that_a_checkpoint_waits_for_is_done_by_whoever_resumes() -> None:
    saves: list[StateTree] = []
    trainer = Counter(20)
    made, _ = session(trainer, Resetter(), rhythm=Rhythm(None, 0, 0, 10), saves=saves)
    trainer.fit(made)  # type: ignore[arg-type]
    made.finish()
    assert [state["reset_seed"] for state in saves] == [10, 20, 20]

    longer = Counter(30)
    longer.steps = 20
    again, _ = session(longer, Resetter(), saves=[], restored=saves[-1])
    longer.fit(again)  # type: ignore[arg-type]
    assert longer.resets == [20]

    ended = Counter(20)
    same, _ = session(ended, Resetter(), saves=[], restored=saves[-1])
    same.start()
    assert ended.resets == []


def test_a_callback_can_take_the_policy_and_put_it_back() -> None:
    class Keeps(RunCallback):
        def on_update_end(self, control: RunControl) -> None:
            if control.steps == 20:
                self.kept = control.policy_state()
            control.reset_policy(control.steps)

        def on_run_end(self, control: RunControl) -> None:
            control.load_policy(self.kept)

    def probe(control: RunControl) -> EvalReport:
        probed.append((control.steps, list(trainer.resets)))
        return EvalReport()

    probed: list[tuple[int, list[int]]] = []
    trainer = Counter(50)
    contributions = Contributions(callbacks=[owned(Keeps())], evaluators=[owned(Evaluator("probe", 50, probe))])
    made, _ = session(trainer, rhythm=Rhythm(50, 1), contributions=contributions)
    trainer.fit(made)  # type: ignore[arg-type]
    assert [step for step, _ in made.evaluations] == [50]
    made.finish()
    assert trainer.resets == [10]
    assert [step for step, _ in made.evaluations] == [50, 50], "what the run leaves is what was evaluated last"
    assert probed == [(50, [10, 20, 30, 40]), (50, [10])]


def test_what_was_trained_is_kept_where_a_callback_fails_at_the_end() -> None:
    class Films(Spy):
        def on_run_end(self, control: RunControl) -> None:
            super().on_run_end(control)
            if full:
                raise OSError("no space left on device")

    full, spy, saves = [1], Films(), []
    trainer = Counter(40)
    made, _ = session(trainer, spy, rhythm=Rhythm(20, 1), saves=saves)
    trainer.fit(made)  # type: ignore[arg-type]
    with pytest.raises(ContributionError, match=r"its on_run_end raised OSError: no space left"):
        made.finish()
    assert len(saves) == 1

    full.clear()
    again, _ = session(Counter(40), spy, rhythm=Rhythm(20, 1), saves=saves, restored=saves[0])
    again.start()
    again.finish()
    assert spy.seen[-3:] == ["end", "end", "checkpoint 40"], "the checkpoint remembers the first end"
    assert again.ended_at == 40


def test_a_stop_asked_for_at_the_start_of_a_resume_is_not_lost() -> None:
    class Full(RunCallback):
        def on_run_start(self, control: RunControl) -> None:
            if full:
                control.stop("the disk is nearly full")

    full: list[int] = []
    saves: list[StateTree] = []
    trainer = Counter(40)
    made, _ = session(trainer, Full(), rhythm=Rhythm(None, 0, 0, 20), saves=saves)
    trainer.fit(made)  # type: ignore[arg-type]
    full.append(1)
    again, _ = session(Counter(40), Full(), saves=[], restored=saves[0])
    assert not again.start()
    assert again.stopped == "the disk is nearly full"


def test_interrupt_stops_at_the_next_boundary_with_a_checkpoint() -> None:
    class Presses(RunCallback):
        def on_update_end(self, control: RunControl) -> None:
            if control.steps == 20:
                made.interrupt()

    trainer, saves = Counter(), []
    made, _ = session(trainer, Presses(), rhythm=Rhythm(None, 3), saves=saves)
    trainer.fit(made)  # type: ignore[arg-type]
    made.finish()
    assert trainer.steps == 20
    assert [s["steps"] for s in saves] == [20]
    assert made.evaluations == [], "an interrupted run does not evaluate before it goes"


@pytest.mark.parametrize(("every", "cut_short"), [(None, False), (20, True)])
def test_who_interrupts_when_nothing_is_left_cuts_nothing_short(every: int | None, cut_short: bool) -> None:
    """With ``every`` the evaluation belongs to the last boundary, after which the run's end is still to come."""

    class Presses(RunCallback):
        def on_eval(self, control: RunControl, evaluation: Evaluation) -> None:
            if control.steps == 40:
                made.interrupt()

    trainer = Counter(40)
    made, _ = session(trainer, Presses(), rhythm=Rhythm(every, 3, 0, 40), saves=[])
    trainer.fit(made)  # type: ignore[arg-type]
    made.finish()
    assert made.interrupted
    assert made.cut_short is cut_short


def test_an_evaluation_is_counted_beside_whoever_observes_it() -> None:
    class Plays(Counter):
        def evaluate(self, episodes: int, seed: int, observer: Any = None) -> Evaluation:
            for _ in range(episodes):
                batch = StepBatch()
                batch.dones = np.array([True, False])
                observer(batch)
            return super().evaluate(episodes, seed)

    made, screen = session(Plays())
    screen.shown = True
    seen: list[StepBatch] = []
    made.evaluate(2, 0, seen.append)
    made.evaluate(1, 0)
    assert len(seen) == 2
    counted = ["evaluating", "evaluating, 1 episode so far", "evaluating, 2 episodes so far", ""]
    assert screen.phases == [*counted, "evaluating", "evaluating, 1 episode so far", ""]


def test_a_restored_session_goes_on_as_if_never_stopped() -> None:
    rhythm = Rhythm(30, 2, 7, 50)
    whole_spy, whole_saves, whole = Spy(), [], Counter()
    made, memory = session(whole, whole_spy, rhythm=rhythm, saves=whole_saves)
    whole.fit(made)  # type: ignore[arg-type]
    made.finish()

    cut, spy, saves = Counter(), Spy(), []
    cut.steps = 50
    again, rest = session(cut, spy, rhythm=rhythm, saves=saves, restored=whole_saves[0])
    cut.fit(again)  # type: ignore[arg-type]
    again.finish()
    # "checkpoint 50" is announced after the state is taken, so the restored callback has not seen it.
    assert spy.seen == [event for event in whole_spy.seen if event != "checkpoint 50"]
    assert rest.records == [record for record in memory.records if record[0] > 50]
    assert again.env_steps == made.env_steps
    assert saves[-1]["evaluations"][-1]["step"] == whole_saves[-1]["evaluations"][-1]["step"]


def test_finishing_twice_changes_nothing() -> None:
    trainer, spy, saves = Counter(20), Spy(), []
    made, _ = session(trainer, spy, rhythm=Rhythm(None, 1), saves=saves)
    trainer.fit(made)  # type: ignore[arg-type]
    made.finish()
    again, rest = session(trainer, Spy(), rhythm=Rhythm(None, 1), saves=[], restored=saves[-1])
    again.start()
    again.finish()
    assert rest.records == []
    assert again.env_steps == made.env_steps


def test_state_of_stateful_reward_terms_is_kept() -> None:
    class Sum:
        total = 0.0

        def state_dict(self) -> StateTree:
            return {"total": self.total}

        def load_state_dict(self, state: StateTree) -> None:
            self.total = state["total"]

    first, second = Sum(), Sum()
    first.total = 4.5
    saved = session(
        Counter(),
        contributions=Contributions(reward_terms=[owned(RewardTerm("t", fn=lambda b: b.rewards, state=first))]),
    )[0].state_dict()
    made, _ = session(
        Counter(),
        contributions=Contributions(reward_terms=[owned(RewardTerm("t", fn=lambda b: b.rewards, state=second))]),
        restored=saved,
    )
    made.start()
    assert second.total == 4.5


def test_an_error_in_a_callback_names_plugin_event_and_step() -> None:
    class Broken(RunCallback):
        def on_update_end(self, control: RunControl) -> None:
            raise ZeroDivisionError("by zero")

    trainer = Counter()
    made, _ = session(trainer, Broken())
    with pytest.raises(ContributionError) as caught:
        trainer.fit(made)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "plugins.spy, step 10: its on_update_end raised ZeroDivisionError: by zero. "
        "Asked for by budwood-spy 1.0. Run again with --debug to see where."
    )


def test_asking_for_a_checkpoint_in_a_grafted_script_does_nothing() -> None:
    class Asks(RunCallback):
        def on_update_end(self, control: RunControl) -> None:
            control.checkpoint()

    trainer = Counter(30)
    made, _ = session(trainer, Asks())
    trainer.fit(made)  # type: ignore[arg-type]
    assert trainer.steps == 30


def test_a_wish_is_granted_at_the_next_boundary_wherever_it_is_made() -> None:
    """A callback that only sees rollouts; nothing else is due for a long time."""

    class Watcher(RunCallback):
        def on_rollout_end(self, control: RunControl, rollout: Any) -> None:
            control.log({"watcher/steps": float(control.steps)})
            if control.steps == 20:
                control.checkpoint()
                control.stop("enough")

    class Rollouts(Counter):
        def fit(self, events: Session) -> None:
            events.start()
            while self.steps < self.total_steps:
                self.steps += 10
                events.rollout_end(None)  # type: ignore[arg-type]
                if self.steps >= events.next_boundary and not events.boundary(self.steps):
                    return

    trainer, saves = Rollouts(), []
    made, memory = session(trainer, Watcher(), saves=saves)
    trainer.fit(made)  # type: ignore[arg-type]
    assert [step for step, _ in memory.records] == [0, 10, 20], "the last boundary, not the beginning of the run"
    assert (trainer.steps, [s["steps"] for s in saves]) == (30, [30])


def test_the_last_run_of_an_evaluator_is_not_lost_with_a_kill_after_the_last_update() -> None:
    calls: list[int] = []

    def measure(control: RunControl) -> EvalReport:
        calls.append(control.steps)
        return EvalReport()

    def made(trainer: Counter, **kw: Any) -> Session:
        probes = Contributions(evaluators=[owned(Evaluator("probe", 20, measure))])
        return session(trainer, contributions=probes, rhythm=Rhythm(None, 0, 0, 50), saves=saves, **kw)[0]

    saves: list[StateTree] = []
    first, second = Counter(50), Counter(50)
    first.fit(made(first))  # type: ignore[arg-type]
    assert calls == [20, 40]
    second.steps = 50
    again = made(second, restored=saves[-1])
    second.fit(again)  # type: ignore[arg-type]
    again.finish()
    assert calls == [20, 40, 50]


def test_a_stop_is_remembered_by_the_checkpoint_of_the_same_boundary() -> None:
    class Stopper(RunCallback):
        def on_eval(self, control: RunControl, evaluation: Evaluation) -> None:
            control.stop("enough")

    rhythm, saves = Rhythm(20, 1, 0, 20), []
    trainer = Counter()
    made, _ = session(trainer, Stopper(), rhythm=rhythm, saves=saves)
    trainer.fit(made)  # type: ignore[arg-type]
    assert trainer.steps == 20
    again, _ = session(Counter(), Stopper(), rhythm=rhythm, saves=[], restored=saves[0])
    assert not again.start(), "killed here, the run still ends where it would have ended"
    assert again.next_boundary == 0

    made.finish()
    more, _ = session(Counter(), Stopper(), rhythm=rhythm, saves=[], restored=saves[-1])
    assert not more.start(), "killed after its last checkpoint, it ends there too"


def test_no_second_is_counted_twice() -> None:
    class Slow(Counter):
        def evaluate(self, episodes: int, seed: int, observer: Any = None) -> Evaluation:
            time.sleep(0.05)
            return super().evaluate(episodes, seed, observer)

    class Measures(RunCallback):
        def on_update_end(self, control: RunControl) -> None:
            control.evaluate(1, 0)

    def measure(control: RunControl) -> EvalReport:
        control.evaluate(1, 0)
        return EvalReport()

    trainer = Slow(10)
    contributions = Contributions(callbacks=[owned(Measures())], evaluators=[owned(Evaluator("probe", 10, measure))])
    made, _ = session(trainer, contributions=contributions)
    began = time.perf_counter()
    trainer.fit(made)  # type: ignore[arg-type]
    assert 0.1 <= made.seconds["evaluation"] <= sum(made.seconds.values()) <= time.perf_counter() - began


def test_an_error_in_a_state_names_the_plugin() -> None:
    class Broken(RunCallback):
        def state_dict(self) -> StateTree:
            raise ZeroDivisionError("by zero")

    made, _ = session(Counter(), Broken())
    with pytest.raises(ContributionError, match=r"plugins\.spy, step 0: its state_dict raised ZeroDivisionError"):
        made.state_dict()


def test_a_checkpoint_of_other_callbacks_is_refused() -> None:
    saved = session(Counter(), Spy())[0].state_dict()
    made, _ = session(Counter(), Spy(), Spy(), restored=saved)
    with pytest.raises(CheckpointError, match="holds the state of 1 callbacks, and the plugins give 2 now"):
        made.start()


def test_a_state_that_lacks_a_key_is_one_paragraph() -> None:
    saved = session(Counter(), Spy())[0].state_dict()
    del saved["evaluated_at"]
    made, _ = session(Counter(), Spy(), restored=saved)
    with pytest.raises(
        CheckpointError, match=r"session of the checkpoint of step 0: the checkpoint has no 'evaluated_at'"
    ):
        made.start()


def test_an_evaluator_needs_a_step_to_run_at() -> None:
    with pytest.raises(ContributionError, match="evaluator 'probe' is to run every 0 steps; give at least 1"):
        Evaluator("probe", 0, lambda control: EvalReport())


# ---- a budget of environment steps ------------------------------------------------------------------------------------


def test_a_budget_ends_training_at_the_first_boundary_that_has_spent_it() -> None:
    trainer = Counter(100)
    made, _ = session(trainer, rhythm=Rhythm(evaluate_every=20, episodes=2, budget=60))
    trainer.fit(made)  # type: ignore[arg-type]
    assert (made.steps, made.evaluation_steps) == (40, 20), "two evaluations of 10 steps each count"
    assert (made.spent, made.stopped) == (True, None)
    made.finish()
    assert made.env_steps == 60, "the evaluation at step 40 is the last one"


def test_a_budget_alone_is_the_next_boundary() -> None:
    made, _ = session(Counter(), rhythm=Rhythm(budget=35))
    made.start()
    assert made.next_boundary == 35
    made.evaluate(3, 0)
    assert made.boundary(10)
    assert made.next_boundary == 20
    assert not made.boundary(20)


def test_a_spent_budget_is_spent_after_a_resume_too_until_it_is_raised() -> None:
    saves: list[StateTree] = []
    first, _ = session(Counter(), rhythm=Rhythm(checkpoint_every=30, budget=30), saves=saves)
    first.trainer.fit(first)
    killed_before_it_ended = saves[0]
    assert killed_before_it_ended["ended_at"] == -1
    again, _ = session(Counter(), rhythm=Rhythm(budget=30), restored=killed_before_it_ended)
    assert not again.start()
    raised, _ = session(Counter(), rhythm=Rhythm(budget=50), restored=killed_before_it_ended)
    assert raised.start()
    assert raised.next_boundary == 50


# ---- a trainer whose step is a decision --------------------------------------------------------------------------------


class Decider(Counter):
    """Every decision takes three environment steps; the count begins anew with every process, as environments may."""

    unit = "decisions"

    def __init__(self, total_steps: int = 100, steps: int = 0) -> None:
        super().__init__(total_steps)
        self.steps = self.began = steps

    def env_steps(self) -> int | None:
        return 3 * (self.steps - self.began)


def test_environment_steps_are_the_trainers_own_count_where_it_has_one() -> None:
    saves: list[StateTree] = []
    trainer = Decider(40)
    made, memory = session(trainer, rhythm=Rhythm(20, 2, checkpoint_every=20), saves=saves)
    trainer.fit(made)  # type: ignore[arg-type]
    assert (made.steps, made.env_steps) == (40, 3 * 40 + 2 * 2 * 5)
    assert [data["eval/env_steps"] for _, data in memory.records] == [3 * 20 + 10, 3 * 40 + 20]
    again = Decider(40, steps=20)
    resumed, _ = session(again, rhythm=Rhythm(20, 2), restored=saves[0])
    again.fit(resumed)  # type: ignore[arg-type]
    assert resumed.env_steps == made.env_steps
    del saves[0]["env_steps"]
    older, _ = session(Decider(40, steps=20), restored=saves[0])
    older.start()
    assert older.env_steps == 20 + 10, "checkpoints of earlier versions counted steps"


def test_a_budget_counts_environment_steps_and_is_looked_at_whenever_it_can_be() -> None:
    trainer = Decider(100)
    made, _ = session(trainer, rhythm=Rhythm(budget=80))
    trainer.fit(made)  # type: ignore[arg-type]
    assert (made.steps, made.env_steps, made.spent) == (30, 90, True)
