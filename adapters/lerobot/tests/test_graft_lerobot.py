"""Plugins in a user's own loop: ``policy = budwood.graft(policy, {...})``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from robots import active, nod_policy, parameters, same

import budwood
from budwood import grafting
from budwood.api import BindingError, EvalReport, Evaluator, LossTerm, Run, RunCallback, hookimpl
from budwood.plugins import Activation


class Stops(RunCallback):
    """Counts boundaries, tells them, and stops after two."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_update_end(self, control: Any) -> None:
        self.seen.append(control.steps)
        control.log({"words/told": float(control.steps)})
        if control.steps == 2:
            control.stop("enough")


class Words:
    def __init__(self) -> None:
        made.append(self)
        self.callback = Stops()

    @hookimpl
    def callbacks(self, run: Run) -> Any:
        return self.callback

    @hookimpl
    def evaluators(self, run: Run) -> Any:
        return Evaluator("size", 1, lambda control: EvalReport({"size": float(len(control.policy_state()["policy"]))}))


class Pulls:
    @hookimpl
    def loss_terms(self, run: Run) -> Any:
        return LossTerm("size", lambda inputs: sum((p**2).sum() for p in inputs.policy.parameters()), 0.1)


class Wraps:
    @hookimpl(wrapper=True)
    def build_dataset(self, run: Run, role: str) -> Any:
        return (yield)


class Resets:
    @hookimpl
    def callbacks(self, run: Run) -> Any:
        class Asks(RunCallback):
            def on_update_end(self, control: Any) -> None:
                control.evaluate(1, 0)

        return Asks()


made: list[Any] = []
KINDS = {"words": Words, "pulls": Pulls, "wraps": Wraps, "resets": Resets}


@pytest.fixture(autouse=True)
def of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins that are classes of this file instead of installed ones."""
    made.clear()
    monkeypatch.setattr(
        grafting, "activate", lambda names, adapter: Activation([active(name, KINDS[name]()) for name in names], None)
    )


class Script:
    """A user's own loop: LeRobot's ``update_policy`` on a matrix."""

    def __init__(self, plugins: dict[str, Any] | None) -> None:
        from accelerate import Accelerator
        from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

        policy = nod_policy()
        self.policy = policy if plugins is None else budwood.graft(policy, plugins)
        assert self.policy is policy
        self.accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), 1e-3)
        names = ("loss", "grad_norm", "lr", "update_s")
        self.tracker = MetricsTracker(2, 10, 1, {name: AverageMeter(name) for name in names})
        torch.manual_seed(0)

    def step(self, number: int) -> None:
        from lerobot.scripts.lerobot_train import update_policy

        draws = torch.Generator().manual_seed(number)
        batch = {"observation.state": torch.rand(2, 2, generator=draws), "action": torch.rand(2, 1, 2, generator=draws)}
        update_policy(self.tracker, self.policy, batch, self.optimizer, 1.0, self.accelerator)


def test_callbacks_follow_the_scripts_loop_and_stop_it() -> None:
    script = Script({"words": {}})
    told: list[tuple[int, dict[str, float]]] = []
    with script.policy.grafted(total_steps=5, log=lambda metrics, step: told.append((step, dict(metrics)))) as loop:
        while loop.goes_on:
            script.step(loop.step)
    assert made[-1].callback.seen == [1, 2]
    assert [row["words/told"] for _, row in told if "words/told" in row] == [1.0, 2.0]
    assert [step for step, row in told if "words/size" in row] == [1, 2]
    with pytest.raises(BindingError, match=r"Train inside: with policy\.grafted"):
        script.step(0)


def test_the_loop_ends_at_its_length() -> None:
    script = Script({"pulls": {}})
    with script.policy.grafted(total_steps=2) as loop:
        while loop.goes_on:
            script.step(loop.step)
    assert loop.step == 2


def test_loss_terms_need_no_loop_and_change_only_what_they_say() -> None:
    plain, grafted, pulled = (Script(plugins) for plugins in (None, {}, {"pulls": {}}))
    for script in (plain, grafted, pulled):
        torch.manual_seed(1)
        script.step(0)
    assert type(grafted.policy).__name__ == type(plain.policy).__name__
    assert same(parameters(plain.policy), parameters(grafted.policy))
    size = pulled.tracker.metrics["losses/pulls.size"].avg
    assert pulled.tracker.loss.avg == pytest.approx(plain.tracker.loss.avg + 0.1 * size)
    assert pulled.policy.state_dict().keys() == plain.policy.state_dict().keys(), "nothing of ours is saved with it"


def test_what_cannot_be_grafted_is_refused() -> None:
    policy = nod_policy()
    with pytest.raises(BindingError, match="the script makes it before the policy is grafted"):
        budwood.graft(policy, {"wraps": {}})
    with pytest.raises(BindingError, match="Graft the policy that it gives"):
        budwood.graft(type(policy), {"pulls": {}})
    budwood.graft(policy, {"pulls": {}})
    with pytest.raises(BindingError, match="grafted already"):
        budwood.graft(policy, {"pulls": {}})


def test_a_script_plays_its_own_episodes() -> None:
    from budwood.api import ContributionError

    script = Script({"resets": {}})
    with (
        pytest.raises(ContributionError, match="plays its own episodes"),
        script.policy.grafted(total_steps=1),
    ):
        script.step(0)
