"""The hooks a plugin may implement. pluggy calls them at set-up only; what they return is called directly from then on.

A plugin is a class (instantiated once a run, without arguments) or a module, named by an entry point of the group
``budwood.plugins``. Every hook is optional and marked with :data:`hookimpl`. Three verbs:

* **build**: at most one plugin answers, the adapter's own answer being the fallback; others may wrap it
  (``@hookimpl(wrapper=True)``: ``inner = yield; return changed``). The first plugin in the YAML is the outermost wrapper.
* **collect**: any number of plugins, any number of contributions each.
* **claim**: at most one plugin may return a value; two are an error that names both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pluggy

from budwood.api.completions import CompletionReward
from budwood.api.control import Evaluator, RunCallback
from budwood.api.generation import CompletionAdvantageFn, Decoder, RolloutFn
from budwood.api.report import History, ReportSection
from budwood.api.reward import RewardCombination, RewardTerm
from budwood.api.trainer import Capabilities, Contributions, Graft, Run, Trainer
from budwood.api.training import AdvantageFn, LossTerm, Objective, PolicyFactory

PROJECT = "budwood"
hookimpl = pluggy.HookimplMarker(PROJECT)
hookspec = pluggy.HookspecMarker(PROJECT)

BUILD = ("build_trainer", "build_env", "build_dataset", "build_model", "build_policy")
COLLECT = (
    "config_model", "reward_terms", "completion_rewards", "loss_terms", "evaluators", "callbacks", "report_sections",
    "components", "preflight",
)  # fmt: skip
CLAIM = ("reward_combination", "objective", "advantage", "completion_advantage", "rollout", "decoder")
ADAPTER = ("capabilities", "build_graft")


class Hooks:
    @hookspec
    def config_model(self) -> type[Any]:
        """A :class:`budwood.api.Config` subclass. A plugin's describes its section under ``plugins``; an adapter's has
        the field ``trainer`` and further ones, such as ``env`` or ``dataset``, and describes those top-level sections."""

    # ---- adapters -----------------------------------------------------------------------------------------------
    @hookspec
    def capabilities(self, run: Run, target: Any | None) -> Capabilities | None:
        """What the trainer of this run, or the class or object ``target`` that is to be grafted, can bind.
        None: not a trainer of this family."""

    @hookspec
    def build_trainer(self, run: Run, contributions: Contributions) -> Trainer | None:
        """build. The adapter named by ``trainer.kind`` answers; others may wrap."""

    @hookspec
    def build_graft(self, run: Run, graft: Graft, target: Any) -> Any:
        """A subclass of the trainer class ``target`` whose every object gets contributions of its own, or the built
        object ``target`` itself with the contributions bound."""

    # ---- build --------------------------------------------------------------------------------------------------
    @hookspec
    def build_env(self, run: Run, role: str) -> Callable[[], Any] | None:
        """build. ``role`` is ``train`` or ``eval``. A factory of one environment (a ``gymnasium.Env``)."""

    @hookspec
    def build_dataset(self, run: Run, role: str) -> Any | None:
        """build. ``role`` is ``train`` or ``eval``. A ``datasets.Dataset``, or a ``LeRobotDataset``; None leaves what the
        configuration names. Asked when the trainer is built, not before; a wrapper is passed over where there is nothing
        to wrap."""

    @hookspec
    def build_model(self, run: Run) -> Any | None:
        """build. A transformers model for the run's tokenizer, or a ``PreTrainedPolicy`` of LeRobot; None leaves the one that
        the configuration names. Asked when the trainer is built, as :meth:`build_dataset`."""

    @hookspec
    def build_policy(self, run: Run) -> PolicyFactory | None:
        """build. (observation space, action space) -> :class:`budwood.api.Policy`."""

    # ---- collect ------------------------------------------------------------------------------------------------
    @hookspec
    def reward_terms(self, run: Run) -> Iterable[RewardTerm]:
        """collect. Per-step reward signals."""

    @hookspec
    def completion_rewards(self, run: Run) -> Iterable[CompletionReward]:
        """collect. Rewards of generated text."""

    @hookspec
    def loss_terms(self, run: Run) -> Iterable[LossTerm]:
        """collect. Terms added to the trainer's loss."""

    @hookspec
    def evaluators(self, run: Run) -> Iterable[Evaluator]:
        """collect. Measurements made every so many steps."""

    @hookspec
    def callbacks(self, run: Run) -> Iterable[RunCallback]:
        """collect. Objects that follow and steer the run."""

    @hookspec
    def report_sections(self, run: Run, history: History) -> Iterable[ReportSection]:
        """collect. Parts of ``report.html``, from what was logged."""

    @hookspec
    def components(self, run: Run, kind: str) -> Mapping[str, Any]:
        """collect. Named objects for an extension point that a plugin or an adapter opens, e.g. ``reward_shaping.terms``.
        A plugin whose objects are the same in every run leaves ``run`` out of its arguments."""

    @hookspec
    def preflight(self, run: Run) -> None:
        """collect. Gives nothing, and raises a ``BudwoodError`` if the run would stop at something that can be told without
        training, such as a file that is missing or does not fit. Asked by ``budwood explain`` only: a run meets it by
        itself."""

    # ---- claim --------------------------------------------------------------------------------------------------
    @hookspec
    def reward_combination(self, run: Run) -> RewardCombination | None:
        """claim. How reward terms become one reward."""

    @hookspec
    def objective(self, run: Run) -> Objective | None:
        """claim. The policy loss."""

    @hookspec
    def advantage(self, run: Run) -> AdvantageFn | None:
        """claim. Advantages of a rollout."""

    @hookspec
    def completion_advantage(self, run: Run) -> CompletionAdvantageFn | None:
        """claim. Advantages of scored completions."""

    @hookspec
    def rollout(self, run: Run) -> RolloutFn | None:
        """claim. How prompts become completions."""

    @hookspec
    def decoder(self, run: Run) -> Decoder | None:
        """claim. How token ids are decoded."""
