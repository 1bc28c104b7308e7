"""Loss terms beside TRL's loss: one thin subclass whose ``compute_loss`` calls TRL's and adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from budwood.api import Contributed, LossInputs, LossTerm, blamed, misfit


class WithLosses:
    """In front of a trainer of TRL. ``_loss_terms`` are bound to the class by whoever makes it."""

    _loss_terms: Sequence[Contributed[LossTerm]] = ()
    _token_stats: tuple[Any, ...] = ()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        trainer: Any = self
        # TRL's compute_loss may write into its batch, and a term is to see the same as TRL.
        batch = dict(inputs)
        outcome = super().compute_loss(  # type: ignore[misc]
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        loss = outcome[0] if return_outputs else outcome
        seen = _loss_inputs(model, batch, self._token_stats)
        self._token_stats = ()
        for item in self._loss_terms:
            loss = loss + _share(trainer, num_items_in_batch) * _value(item, seen, trainer)
        return (loss, *outcome[1:]) if return_outputs else loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """Passes on whatever comes, and keeps the last result for the terms: no second forward pass."""
        self._token_stats = super()._get_per_token_logps_and_entropies(*args, **kwargs)  # type: ignore[misc]
        return self._token_stats


def _loss_inputs(model: Any, batch: dict[str, Any], token_stats: tuple[Any, ...]) -> LossInputs:
    if not token_stats:
        return LossInputs(policy=model, batch=batch)
    mask = batch["completion_mask"]
    return LossInputs(
        policy=model,
        batch=batch,
        log_prob=token_stats[0],
        entropy=token_stats[1],
        mask=mask * batch["tool_mask"] if "tool_mask" in batch else mask,
        advantages=batch["advantages"],
    )


def _share(trainer: Any, num_items_in_batch: Any) -> float:
    """One over the micro-batches of an optimiser step, unless ``training_step`` will divide by them itself."""
    if not trainer.model.training:
        return 1.0
    divides = (
        not trainer.model_accepts_loss_kwargs or num_items_in_batch is None
    ) and trainer.compute_loss_func is None
    return 1.0 if divides else 1.0 / trainer.current_gradient_accumulation_steps


def _value(item: Contributed[LossTerm], seen: LossInputs, trainer: Any) -> torch.Tensor:
    term = item.value
    with blamed(item, f"loss term {term.name}"):
        value = term.fn(seen)
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise misfit(item, f"loss term {term.name} gave {shape}, expected a scalar tensor")
    if not torch.isfinite(value).all():
        raise misfit(item, f"loss term {term.name} is {value.item()} at step {trainer.state.global_step}")
    mode = "train" if trainer.model.training else "eval"
    trainer._metrics[mode][f"losses/{item.plugin}.{term.name}"].append(value.item())
    return term.weight * value.reshape(()).to(torch.float32)
