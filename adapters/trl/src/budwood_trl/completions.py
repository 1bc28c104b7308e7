"""What happens between prompts and advantages in GRPO and RLOO: claimed rollouts, decoders and advantages."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from budwood.api import (
    CompletionAdvantageFn,
    Contributed,
    Decoder,
    Generated,
    GenerationRequest,
    RolloutFn,
    ScoredCompletions,
    blamed,
    misfit,
)


class WithAdvantages:
    """In front of GRPO or RLOO: the advantages are a plugin's, everything else of a scored batch stays TRL's."""

    _advantage: Contributed[CompletionAdvantageFn]

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        self._rewards = super()._calculate_rewards(*args, **kwargs)  # type: ignore[misc]
        return self._rewards

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        scored = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        scored["advantages"] = _advantages(self, self._advantage, self._rewards, scored)
        return scored


def _advantages(trainer: Any, item: Contributed[CompletionAdvantageFn], rewards: Any, scored: Any) -> torch.Tensor:
    own = scored["advantages"]
    start = trainer.accelerator.process_index * len(own)
    mask = scored["completion_mask"]
    training = trainer.model.training
    batch = ScoredCompletions(
        rewards=rewards[start : start + len(own)].cpu().numpy(),
        columns=tuple(trainer.reward_func_names),
        weights=trainer.reward_weights.cpu().numpy(),
        group=trainer.num_generations if training else trainer.num_generations_eval,
        mask=mask.cpu().numpy(),
        advantages=own.cpu().numpy().copy(),
    )
    with blamed(item, "completion advantage"):
        made = np.asarray(item.value(batch), dtype=np.float32)
    if made.shape not in (tuple(own.shape), tuple(mask.shape)):
        raise misfit(
            item, f"its advantages have the shape {made.shape}, expected {tuple(own.shape)} or {tuple(mask.shape)}"
        )
    if not np.isfinite(made).all():
        raise misfit(item, f"an advantage is not finite at step {trainer.state.global_step}")
    return torch.as_tensor(made, device=own.device)


@contextmanager
def knowingly() -> Iterator[None]:
    """Without TRL's warning that ``rollout_func`` may change: its grade is B here, and a canary watches it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using 'rollout_func'")
        yield


def rollout_func(
    rollout: Contributed[RolloutFn] | None, decoder: Contributed[Decoder] | None
) -> Callable[[list[Any], Any], dict[str, Any]] | None:
    """TRL's ``rollout_func(prompts, trainer)`` of a claimed rollout, decoder, or both; None of neither."""
    outer = rollout or decoder
    if outer is None:
        return None

    def roll(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        prompt_ids, images, fields = trainer._tokenize_prompts(prompts)
        training = trainer.model.training
        count = trainer.num_generations if training else trainer.num_generations_eval

        def own(ids: Sequence[Sequence[int]]) -> Generated:
            completions, log_probs = trainer._generate_single_turn(list(ids), images, fields, count)
            return Generated(completions, log_probs)

        def request(generate: Callable[[Sequence[Sequence[int]]], Generated], ids: Any) -> GenerationRequest:
            return GenerationRequest(
                prompts=prompts,
                prompt_ids=ids,
                generate=generate,
                model=trainer.accelerator.unwrap_model(trainer.model),
                tokenizer=trainer.processing_class,
                settings=settings_of(trainer),
                step=trainer.state.global_step,
                training=training,
            )

        def decoded(ids: Sequence[Sequence[int]]) -> Generated:
            assert decoder is not None
            return _called(decoder, "decoder", request(own, ids))

        if rollout is None:
            made = decoded(prompt_ids)
        else:
            made = _called(rollout, "rollout", request(own if decoder is None else decoded, prompt_ids))
        return _as_trl_wants(outer, made, prompt_ids)

    return roll


def settings_of(trainer: Any) -> Mapping[str, Any]:
    return {name: value for name, value in trainer.generation_kwargs.items() if value is not None}


def _called(item: Contributed[Any], what: str, request: GenerationRequest) -> Generated:
    with blamed(item, what):
        made = item.value(request)
    if not isinstance(made, Generated):
        raise misfit(item, f"its {what} returned a value of type {type(made).__name__}, expected Generated")
    count = len(request.prompt_ids)
    parts = {"ids": made.ids, "log_probs": made.log_probs, "prompt_ids": made.prompt_ids, "mask": made.mask}
    for name, part in {**parts, **made.columns}.items():
        if part is not None and len(part) != count:
            raise misfit(item, f"its {what} gave {len(part)} {name} for {count} prompts")
    for row, ids in enumerate(made.ids):
        if len(ids) == 0:
            raise misfit(item, f"its {what} gave no token for prompt {row}", "Give at least the end-of-text token")
        for name, part in (("log_probs", made.log_probs), ("mask", made.mask)):
            if part is not None and len(part[row]) != len(ids):
                raise misfit(item, f"its {what} gave {len(part[row])} {name} for the {len(ids)} tokens of row {row}")
    return made


def _as_trl_wants(item: Contributed[Any], made: Generated, prompt_ids: Any) -> dict[str, Any]:
    taken = sorted({"prompt_ids", "completion_ids", "logprobs", "env_mask", "prompt"} & set(made.columns))
    if taken:
        raise misfit(item, f"it gives columns that TRL has itself: {', '.join(taken)}", "Call them otherwise")
    masked = {} if made.mask is None else {"env_mask": made.mask}
    return {
        "prompt_ids": made.prompt_ids or prompt_ids,
        "completion_ids": made.ids,
        "logprobs": made.log_probs,
        **masked,
        **made.columns,
    }
