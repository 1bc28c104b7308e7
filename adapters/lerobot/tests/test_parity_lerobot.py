"""Without plugins a run is LeRobot's own loop, bit for bit on CPU; with plugins that change nothing too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from robots import ARGS, POLICIES, Nowhere, numbers, parameters, same

from budwood.api import Contributed, Contributions, EvalReport, Evaluator, LossTerm, Run, RunCallback, hookimpl
from budwood.rhythm import Rhythm
from budwood.session import Session
from budwood_lerobot.trainer import OfflineTrainer

STEPS = 7
"""Past the end of the first epoch."""


def trained(made: OfflineTrainer, contributions: Contributions | None = None) -> Nowhere:
    memory = Nowhere()
    made.fit(Session(made, contributions or Contributions(), memory, memory, Rhythm()))
    return memory


def bare(policy: str | dict[str, Any], dataset: Path, steps: int, **changes: Any) -> tuple[Any, list[dict[str, float]]]:
    """LeRobot's train script in short, on its own functions: a policy after ``steps`` steps, and the numbers of each."""
    import draccus
    from accelerate import Accelerator
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.datasets import EpisodeAwareSampler
    from lerobot.datasets.factory import make_dataset
    from lerobot.optim.factory import make_optimizer_and_scheduler
    from lerobot.policies import make_policy, make_pre_post_processors
    from lerobot.scripts.lerobot_train import update_policy
    from lerobot.utils.logging_utils import AverageMeter, MetricsTracker
    from lerobot.utils.random_utils import set_seed
    from lerobot.utils.utils import cycle

    settings = POLICIES[policy] if isinstance(policy, str) else policy
    args = {**ARGS, **changes}
    rows = {"repo_id": "local/middle", "root": str(dataset)}
    policy_config = draccus.decode(PreTrainedConfig, {**settings, "device": "cpu", "push_to_hub": False})
    config = draccus.decode(TrainPipelineConfig, {"dataset": rows, **args})
    config.policy, config.steps = policy_config, steps
    config.optimizer, config.scheduler = policy_config.get_optimizer_preset(), policy_config.get_scheduler_preset()
    accelerator = Accelerator(step_scheduler_with_optimizer=False, cpu=True)
    set_seed(3, accelerator)
    data = make_dataset(config)
    made = make_policy(policy_config, ds_meta=data.meta)
    preprocessor, _ = make_pre_post_processors(policy_config, dataset_stats=data.meta.stats)
    optimizer, scheduler = make_optimizer_and_scheduler(config, made)
    sampler = EpisodeAwareSampler(
        data.meta.episodes["dataset_from_index"], data.meta.episodes["dataset_to_index"], shuffle=True, seed=3
    )
    loader = torch.utils.data.DataLoader(data, batch_size=config.batch_size, sampler=sampler)
    made, optimizer, loader, scheduler = accelerator.prepare(made, optimizer, loader, scheduler)
    meters = {name: AverageMeter(name) for name in ("loss", "grad_norm", "lr", "update_s")}
    tracker = MetricsTracker(config.batch_size, data.num_frames, data.num_episodes, meters, accelerator=accelerator)
    history, batches = [], cycle(loader)
    for _ in range(steps):
        batch = next(batches)
        assert batch["observation.image"].dtype == torch.float32  # frames of a video would be bytes
        update_policy(
            tracker, made, preprocessor(batch), optimizer, config.optimizer.grad_clip_norm, accelerator, scheduler
        )
        tracker.step()
        history.append({f"train/{name}": value for name, value in tracker.to_dict().items() if name != "steps"})
        tracker.reset_averages()
    return made, history


@pytest.mark.parametrize("kind", POLICIES)
def test_a_run_without_plugins_is_the_bare_loop(kind: str, trainer: Any, dataset: Path) -> None:
    made = trainer(kind, steps=STEPS)
    memory = trained(made)
    policy, history = bare(kind, dataset, STEPS)
    assert type(made.native) is type(policy)
    assert [numbers(row) for _, row in memory.records] == [numbers(row) for row in history]
    assert [step for step, _ in memory.records] == list(range(1, STEPS + 1))
    assert same(parameters(made.native), parameters(policy))


class Watching(RunCallback):
    """Overrides events and changes nothing; ``seen`` are the steps it was called at."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_run_start(self, control: Any) -> None:
        torch.rand(3)
        self.seen.append(control.steps)

    def on_update_end(self, control: Any) -> None:
        control.load_policy(control.policy_state())
        self.seen.append(control.steps)


class Nothing:
    @hookimpl
    def loss_terms(self, run: Run) -> Any:
        return LossTerm("zero", lambda inputs: inputs.batch["action"].sum() * 0.0, 2.0, frozenset({"policy", "batch"}))

    @hookimpl(wrapper=True)
    def build_dataset(self, run: Run, role: str) -> Any:
        return (yield)

    @hookimpl(wrapper=True)
    def build_model(self, run: Run) -> Any:
        return (yield)


def test_contributions_that_change_nothing_change_nothing(trainer: Any, dataset: Path) -> None:
    made = trainer("act", {"words": Nothing()}, steps=3)
    watching = Watching()
    who = {"plugin": "words", "who": "budwood-words 1.0"}
    probe = Evaluator("probe", 1, lambda control: EvalReport({"steps": float(control.steps)}))
    memory = trained(
        made, Contributions(callbacks=[Contributed(watching, **who)], evaluators=[Contributed(probe, **who)])
    )
    assert watching.seen == [0, 1, 2, 3]
    assert [row["words/steps"] for _, row in memory.records if "words/steps" in row] == [1.0, 2.0, 3.0]
    policy, history = bare("act", dataset, 3)
    logged = [row for _, row in memory.records if "train/loss" in row]
    assert [row.pop("train/losses/words.zero") for row in logged] == [0.0, 0.0, 0.0]
    assert [numbers(row) for row in logged] == [numbers(row) for row in history]
    assert same(parameters(made.native), parameters(policy))


class Pulls:
    @hookimpl
    def loss_terms(self, run: Run) -> Any:
        return LossTerm("size", lambda inputs: sum((p**2).sum() for p in inputs.policy.parameters()), 0.5)


def test_a_loss_term_is_in_the_loss_the_gradient_and_the_log(trainer: Any, dataset: Path) -> None:
    made = trainer("act", {"pulls": Pulls()}, steps=2)
    first = sum(float((p.detach() ** 2).sum()) for p in made.native.parameters())
    rows = [row for _, row in trained(made).records]
    _, history = bare("act", dataset, 1)
    assert rows[0]["train/losses/pulls.size"] == pytest.approx(first)
    assert rows[0]["train/loss"] == pytest.approx(history[0]["train/loss"] + 0.5 * first)
    assert rows[1]["train/losses/pulls.size"] < rows[0]["train/losses/pulls.size"]
