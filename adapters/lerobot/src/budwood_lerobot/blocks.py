"""LeRobot's building blocks of a training, made by LeRobot's own functions in the order of its train script."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from lerobot.datasets import EpisodeAwareSampler, compute_sampler_state
from lerobot.datasets.factory import make_train_eval_datasets
from lerobot.optim.factory import make_optimizer_and_scheduler
from lerobot.policies import PreTrainedPolicy, make_policy
from lerobot.utils.collate import lerobot_collate_fn

from budwood.api import ALONE, ConfigError, Contributed, Contributions, LossTerm, Processes
from budwood_lerobot.losses import bind_losses
from budwood_lerobot.native import flat
from budwood_lerobot.processors import UNREADABLE, processors_of

NEEDED = ("meta", "episodes", "num_frames", "num_episodes", "absolute_to_relative_idx")
"""What the loop reads of a dataset beside its rows."""


@dataclass
class Blocks:
    """Everything that a training step reads. ``config`` is LeRobot's ``TrainPipelineConfig``; ``held_out`` may be None."""

    config: Any
    accelerator: Accelerator
    policy: Any
    optimizer: Any
    scheduler: Any
    preprocessor: Any
    postprocessor: Any
    dataset: Any
    sampler: EpisodeAwareSampler
    loader: Any
    held_out: Any
    processes: Processes = ALONE
    weight: float = 1.0
    """Of this process's part of a batch."""

    def batches(self, step: int) -> Iterator[Any]:
        """Raw batches of one epoch after ``step`` optimiser steps, from where that many have left it."""
        self.sampler.load_state_dict(compute_sampler_state(step, len(self.sampler), self.config.batch_size, 1))
        return iter(self.loader)

    def at_epoch(self, step: int) -> bool:
        """Whether ``step`` optimiser steps end with the end of an epoch."""
        return compute_sampler_state(step, len(self.sampler), self.config.batch_size, 1)["start_index"] == 0  # type: ignore[no-any-return]

    def learn_from(self, step: int) -> None:
        """The update that comes is that of this step: how much this process's rows of its batch count."""
        start = compute_sampler_state(step, len(self.sampler), self.config.batch_size, 1)["start_index"]
        size = min(self.config.batch_size, len(self.sampler) - start)
        rows = part_of(size, self.processes)
        self.weight = (rows.stop - rows.start) * self.processes.count / size

    def prepared(self, batch: dict[str, Any]) -> Any:
        """A raw batch as the policy's ``forward`` takes it: images in [0, 1], normalised, on the device."""
        for key in self.dataset.meta.camera_keys:
            if key in batch and batch[key].dtype == torch.uint8:
                batch[key] = batch[key].to(dtype=torch.float32) / 255.0
        return self.preprocessor(batch)


def part_of(size: int, processes: Processes) -> slice:
    """This process's rows of a batch; none if there are fewer rows than processes."""
    first, last = (rank * size // processes.count for rank in (processes.rank, processes.rank + 1))
    return slice(first, last)


class Shares:
    """Batches of the order of ``sampler``, the last of an epoch a short one; a process reads its rows of each.

    One whose part is empty reads a row that counts for nothing.
    """

    def __init__(self, sampler: Any, size: int, processes: Processes) -> None:
        self.sampler, self.size, self.processes = sampler, size, processes

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        order = iter(self.sampler)
        while batch := list(islice(order, self.size)):
            yield batch[part_of(len(batch), self.processes)] or batch[:1]


def _counted(blocks: Blocks, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Gradients are averaged over processes: times b N / B the mean over b rows becomes the mean over all B."""

    def weighted(batch: Any, *args: Any, **kwargs: Any) -> Any:
        loss, output = forward(batch, *args, **kwargs)
        return loss * blocks.weight, output

    return weighted


def datasets_of(config: Any, contributions: Contributions, named: bool) -> tuple[Any, Any]:
    """Rows to train on, and held-out rows or None: those of the section ``dataset``, inside every plugin's wrapper."""
    train, held_out = None, None
    if named:
        try:
            train, held_out = make_train_eval_datasets(config)
        except UNREADABLE as error:
            place = config.dataset.root or "no root, so LeRobot's own cache or the hub"
            raise ConfigError(
                f"the dataset {config.dataset.repo_id} cannot be read ({place}): {flat(error)}",
                where="dataset",
                do="Name a folder of a LeRobotDataset in dataset.root: it holds meta/info.json",
            ) from error
    if contributions.wrap_dataset is not None:
        train, held_out = contributions.wrap_dataset(train, "train"), contributions.wrap_dataset(held_out, "eval")
    if train is None:
        raise ConfigError("no plugin brought a dataset, and none is named", where="dataset", do="Write dataset.repo_id")
    for role, rows in (("train", train), ("eval", held_out)):
        missing = [name for name in NEEDED if rows is not None and not hasattr(rows, name)]
        if missing:
            raise ConfigError(
                f"build_dataset for {role} gave a {type(rows).__name__} without {', '.join(missing)}",
                where="plugins",
                do="Give a LeRobotDataset, or a wrapper that passes on its attributes",
            )
    return train, held_out


def policy_of(config: Any, meta: Any, contributions: Contributions) -> Any:
    """A new policy, or that of ``trainer.policy.path``, inside every plugin's wrapper."""
    try:
        policy = make_policy(cfg=config.policy, ds_meta=meta, rename_map=config.rename_map)
    except (ImportError, AttributeError, RuntimeError, *UNREADABLE) as error:
        raise ConfigError(
            f"LeRobot cannot make the policy {config.policy.type} for this dataset: {flat(error)}",
            where="trainer.policy",
            do="Check its fields against the dataset's features, and that its extra is installed",
        ) from error
    if contributions.wrap_model is not None:
        policy = contributions.wrap_model(policy)
        if not isinstance(policy, PreTrainedPolicy):
            raise ConfigError(
                f"build_model gave a {type(policy).__name__}, expected a PreTrainedPolicy of LeRobot", where="plugins"
            )
    return policy


def assembled(
    config: Any,
    accelerator: Accelerator,
    policy: Any,
    train: Any,
    held_out: Any,
    loss_terms: Sequence[Contributed[LossTerm]],
    processes: Processes = ALONE,
) -> Blocks:
    """All building blocks around a policy that is already made."""
    preprocessor, postprocessor = processors_of(
        config.policy,
        dataset_stats=train.meta.stats,
        **_overrides(config, policy, train.meta.stats, accelerator.device.type),
    )
    optimizer, scheduler = make_optimizer_and_scheduler(config, policy)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"{config.policy.type} has several optimisers, which this loop has no step for")
    torch.backends.cudnn.deterministic = config.cudnn_deterministic
    torch.backends.cudnn.benchmark = not config.cudnn_deterministic
    sampler = EpisodeAwareSampler(
        train.meta.episodes["dataset_from_index"],
        train.meta.episodes["dataset_to_index"],
        episode_indices_to_use=train.episodes,
        drop_n_last_frames=getattr(config.policy, "drop_n_last_frames", 0),
        shuffle=True,
        seed=config.seed,
        absolute_to_relative_idx=train.absolute_to_relative_idx,
    )
    if processes.several:
        order = {"batch_sampler": Shares(sampler, config.batch_size, processes)}
    else:
        order = {"batch_size": config.batch_size, "sampler": sampler}
    loader = _loader(config, accelerator, train, train, **order)
    bind_losses(policy, loss_terms)
    policy, optimizer, scheduler = accelerator.prepare(policy, optimizer, scheduler)
    blocks = Blocks(
        config=config,
        accelerator=accelerator,
        policy=policy,
        optimizer=optimizer,
        scheduler=scheduler,
        preprocessor=preprocessor,
        postprocessor=postprocessor,
        dataset=train,
        sampler=sampler,
        loader=loader,
        held_out=None
        if held_out is None
        else _loader(config, accelerator, train, _capped(config, held_out), batch_size=config.batch_size),
        processes=processes,
    )
    if processes.several:
        policy.forward = _counted(blocks, policy.forward)
    return blocks


def _overrides(config: Any, policy: Any, stats: Any, device: str) -> Mapping[str, Any]:
    """What a pretrained policy's saved processors are told anew: the device, and the features and statistics of this data."""
    native = config.policy
    if native.pretrained_path is None:
        return {}
    features, mapping = policy.config.output_features, policy.config.normalization_mapping
    before = {
        "device_processor": {"device": device},
        "normalizer_processor": {
            "features": {**policy.config.input_features, **features},
            "norm_map": mapping,
            "stats": stats,
        },
        "rename_observations_processor": {"rename_map": config.rename_map},
    }
    after: dict[str, Any] = {"unnormalizer_processor": {"features": features, "norm_map": mapping, "stats": stats}}
    if getattr(native, "use_relative_actions", False):
        before["relative_actions_processor"] = {
            "enabled": True,
            "exclude_joints": getattr(native, "relative_exclude_joints", []),
            "action_names": getattr(native, "action_feature_names", None),
        }
        after["absolute_actions_processor"] = {"enabled": True}
    return {"preprocessor_overrides": before, "postprocessor_overrides": after}


def _loader(config: Any, accelerator: Accelerator, train: Any, rows: Any, **order: Any) -> Any:
    """Not prepared by accelerate, whose loader is a batch ahead: a random transform of images could not be resumed."""
    workers = config.num_workers > 0
    return torch.utils.data.DataLoader(
        rows,
        **order,
        num_workers=config.num_workers,
        pin_memory=accelerator.device.type == "cuda",
        collate_fn=lerobot_collate_fn if train.meta.has_language_columns else None,
        prefetch_factor=config.prefetch_factor if workers else None,
        persistent_workers=config.persistent_workers and workers,
        multiprocessing_context=config.dataloader_multiprocessing_context if workers else None,
    )


def _capped(config: Any, held_out: Any) -> Any:
    """At most ``max_eval_samples`` rows, the first of every task."""
    if config.max_eval_samples <= 0:
        return held_out
    tasks = held_out.hf_dataset.data.column("task_index").to_numpy()
    different = sorted(set(tasks.tolist()))
    share = max(1, config.max_eval_samples // len(different))
    chosen = [int(row) for task in different for row in (tasks == task).nonzero()[0][:share]]
    return torch.utils.data.Subset(held_out, chosen)
