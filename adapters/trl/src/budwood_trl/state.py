"""What a trainer of TRL needs to go on exactly: its state as a tree, and the subclass that takes it up.

transformers resumes from a folder of pickles. Here the tree holds the same, and :class:`Resumed` hands it to ``train`` at
the places where it would read those files. What TRL itself loses on a resume is in the tree too: the completions that GRPO
and RLOO still have in hand, their count of micro-batches, the order of rows after the first epoch, and numbers not yet
logged.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from budwood.api import CheckpointError, Processes, StateTree, copied, storable
from budwood.api.generators import generators, set_aside, set_generators
from budwood_trl.dealing import Deal, dealt_anew

NOT_PROGRESS = ("log_history", "stateful_callbacks")
"""Of transformers' TrainerState: the journal has the history, and budwood's callbacks keep their own state."""
COUNTERS = ("_step", "_total_train_tokens", "_entropy_window_stats", "entropy_coef", "_last_world_entropy")
"""Attributes of some of TRL's trainers that outlive a step."""
KEYS = (
    "policy",
    "reference",
    "optimizer",
    "scheduler",
    "progress",
    "counters",
    "in_hand",
    "log",
    "generators",
    "notes",
)
"""Of :func:`trainer_state`."""
ANY_LENGTH = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau")
"""Schedules of transformers that do not ask how long a run will be."""
_SAME = "Resume with the model, the trainer and the plugins that the run was trained with"


def trainer_state(native: Any, logged: bool) -> StateTree:
    """Everything at a boundary. ``logged``: the step's numbers have gone out, though TRL has not cleared them yet."""
    notes: list[str] = []
    return {
        "policy": policy_state(native.accelerator.unwrap_model(native.model)),
        "reference": policy_state(native.ref_model) if _follows(native) else None,
        "optimizer": copied(native.optimizer.state_dict()),
        "scheduler": copied(native.lr_scheduler.state_dict()),
        "progress": {name: value for name, value in vars(native.state).items() if name not in NOT_PROGRESS},
        "counters": {name: copied(getattr(native, name)) for name in COUNTERS if hasattr(native, name)},
        "in_hand": _in_hand(native, notes),
        "log": {
            "loss": copied(native._tr_loss),
            "total": native._total_loss_scalar,
            "last": native._globalstep_last_logged,
            "metrics": {} if logged else {name: list(values) for name, values in native._metrics["train"].items()},
        },
        "generators": generators(),
        "micro_batches": native.args.gradient_accumulation_steps,
        "notes": notes,
    }


def restore(native: Any, state: StateTree) -> None:
    """Everything that ``train`` does not make anew, before it is called.

    :raises CheckpointError: the state belongs to another model.
    :raises KeyError: a part of it is missing.
    """
    for key in KEYS:
        _ = state[key]  # several are read only once training has begun
    load_policy(native.accelerator.unwrap_model(native.model), state["policy"])
    if state["reference"] is not None:
        load_policy(native.ref_model, state["reference"])
    for name, value in state["counters"].items():
        setattr(native, name, copied(value))
    if state["in_hand"] is not None:
        native._buffered_inputs = [
            {
                name: value.to(native.args.device) if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
            }
            for batch in copied(state["in_hand"])
        ]


OF_EACH = ("generators", "in_hand", "log")
"""What every process has its own of: the numbers it draws, the completions it holds, the sums it has not logged."""


def joined(state: StateTree, processes: Processes) -> StateTree:
    """The state of one process, with what each of several has of its own."""
    if not processes.several:
        return state
    return {**state, "each": processes.to_first({name: state[name] for name in OF_EACH})}


def own(state: StateTree, here: Deal, rank: int, seed: int) -> StateTree:
    """The part of process ``rank``, also of other processes than those that wrote it.

    ``rows_by`` are the generators whose seed orders the rows, the same everywhere. A process that those before had none of
    draws from a generator of its own, seeded by the run's ``seed``, the step and its number.
    """
    each = state.get("each") or [{name: state[name] for name in OF_EACH}]
    mine = {**state, "rows_by": each[0]["generators"]}
    if len(each) == here.processes:
        return {**mine, **each[rank]}
    step, micro_batches = state["progress"]["global_step"], state["micro_batches"]
    hands, notes = [part["in_hand"] for part in each], list(state["notes"])
    in_hand = None if None in hands else dealt_anew(hands, here, rank)
    if in_hand is None and hands != [None] * len(each):
        notes.append("The completions in hand cannot be dealt anew: new ones are generated in their place.")
    losses = [part["log"]["loss"] for part in each]
    return {
        **mine,
        "progress": {**state["progress"], "train_batch_size": here.rows},
        "counters": {
            name: value * here.micro_batches // micro_batches if name == "_step" else value
            for name, value in state["counters"].items()
        },
        "in_hand": in_hand,
        "log": {**each[0]["log"], "loss": torch.stack([loss.cpu() for loss in losses]).mean(0)},
        "generators": each[rank]["generators"] if rank < len(each) else _drawn(seed, step, rank),
        "notes": [
            *notes,
            f"{len(each)} process{'es' * (len(each) > 1)} wrote this checkpoint, and {here.processes} go on: a step keeps its "
            f"{here.step} rows, {here.micro_batches} x {here.rows} in each (micro-batches x rows). "
            "What is drawn at random is not what it would have been.",
        ],
    }


def check_dealt(native: Any, state: StateTree, here: Deal) -> list[str]:
    """What else to say where another number of processes goes on with ``native``.

    :raises CheckpointError: its steps would not be those of the processes before.
    """
    before = len(state.get("each", [None]))
    if before == here.processes:
        return []
    those = f"{before} process{'es' * (before > 1)}"
    if type(native).__name__ == "KTOTrainer":
        raise CheckpointError(
            f"{those} wrote it: KTO's estimate of the KL divergence is a mean over a micro-batch of all of them, and would be "
            f"another over those of {here.processes}",
            do=f"Go on in {those}",
        )
    rows = len(native.train_dataset)
    if hasattr(native, "_buffered_inputs") or rows % here.step == 0:
        return []
    if native.args.dataloader_drop_last:
        raise CheckpointError(
            f"with dataloader_drop_last an epoch of {rows} rows may have fewer steps in {those} than in {here.processes}, and "
            "other rows come next",
            do=f"Go on in {those}",
        )
    return [
        f"{rows} rows are no whole number of steps: several processes fill the last step of an epoch with rows from its "
        "beginning, and one takes those that are left."
    ]


def _drawn(*entropy: int) -> StateTree:
    """Generators that nobody has drawn from."""
    with set_aside(int(np.random.SeedSequence(entropy).generate_state(1)[0])):
        return generators()


def lengthened(native: Any, state: StateTree, total_steps: int) -> list[str]:
    """What there is to say of a schedule that the run has followed for another length."""
    before, kind = state["progress"]["max_steps"], str(getattr(native.args.lr_scheduler_type, "value", ""))
    if before == total_steps or kind in ANY_LENGTH:
        return []
    return [
        f"The learning rate's schedule, {kind}, depends on the length of the run: up to here it was that of {before} steps, "
        f"from here on it is that of {total_steps}."
    ]


def restore_log(native: Any, state: StateTree) -> None:
    """Numbers that were not logged yet; ``train`` sets them to nothing before it begins."""
    log = state["log"]
    native._tr_loss = log["loss"].to(native.args.device)
    native._total_loss_scalar, native._globalstep_last_logged = log["total"], log["last"]
    native._metrics["train"] = defaultdict(list, {name: list(values) for name, values in log["metrics"].items()})


def policy_state(model: Any) -> StateTree:
    """Parameters and buffers by name; frozen ones come from the model's own folder, tied ones are kept once."""
    saved = model.state_dict()
    return {name: copied(saved[name]) for name in _kept(model)}


def load_policy(model: Any, state: StateTree, where: str = "") -> None:
    """The inverse of :func:`policy_state`.

    :raises CheckpointError: other names or shapes.
    """
    own = model.state_dict()
    wanted = set(_kept(model))
    odd = (wanted ^ set(state)) | {name for name in wanted & set(state) if own[name].shape != state[name].shape}
    if odd:
        some = ", ".join(sorted(odd)[:3])
        raise CheckpointError(
            f"the checkpoint's parameters do not fit the model: {some}{' and others' if len(odd) > 3 else ''}",
            where=where,
            do=_SAME,
        )
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def _kept(model: Any) -> list[str]:
    once = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    once |= {name for name, _ in model.named_buffers()}
    return [name for name in model.state_dict() if name in once]


def _follows(native: Any) -> bool:
    """Whether the reference model moves as the policy does."""
    return bool(getattr(native.args, "sync_ref_model", False)) and native.ref_model is not None


def _in_hand(native: Any, notes: list[str]) -> list[StateTree] | None:
    """Completions that were generated for several steps and are not used up."""
    held = getattr(native, "_buffered_inputs", None)
    if held is None or native._step % (native.args.steps_per_generation * native.num_iterations) == 0:
        return None
    if not storable(held):
        notes.append("The completions in hand hold more than numbers and text: new ones are generated in their place.")
        return None
    kept: list[StateTree] = copied(held)
    return kept


class Resumed:
    """In front of a trainer's class while it takes up ``_resumed``, a state of :func:`trainer_state`."""

    _resumed: StateTree

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """The parameters are loaded already."""

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        trainer: Any = self
        try:
            trainer.optimizer.load_state_dict(copied(self._resumed["optimizer"]))
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's optimiser does not fit: {error}", do=_SAME) from error
        scheduler = trainer.lr_scheduler
        scheduler.load_state_dict(copied(self._resumed["scheduler"]))
        if self._resumed["progress"]["max_steps"] != trainer.args.max_steps and hasattr(scheduler, "lr_lambdas"):
            # The next step's rate was found by the schedule of another length: at the end of that one it was 0.
            rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            scheduler._last_lr = [base * share(scheduler.last_epoch) for base, share in rates]
            for group, rate in zip(trainer.optimizer.param_groups, scheduler._last_lr, strict=True):
                group["lr"] = rate

    def _load_rng_state(self, checkpoint: Any) -> None:
        set_generators(self._resumed["generators"])

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's repeating sampler draws an order an epoch from a generator that it makes anew: draw those gone by."""
        sampler = super()._get_train_sampler(*args, **kwargs)  # type: ignore[misc]
        if hasattr(sampler, "mini_repeat_count"):
            for _ in range(int(self._resumed["progress"]["epoch"])):
                next(iter(sampler))
        return sampler
