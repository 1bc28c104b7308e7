"""Velocity fields of LeRobot's flow policies: pi0, pi05, smolvla and multi_task_dit.

An observation is encoded once (`VLAField.encode`) and reused by all K steps of a chain and by the critic. A chain lives in the
model's own space: normalised units, H = chunk_size steps, Dp padded dimensions of which De are the robot's.
docs/decisions/0009-prefix-not-injection.md says why the prefix is made here and LeRobot's integrator is not replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d
from torch import Tensor, nn

from budwood.api import BindingError
from budwood_flow_rl.fields import precise
from budwood_flow_rl.vla.prefix import Prefix, pooled
from budwood_flow_rl.vla.refusals import refuse_settings, unknown_kind

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy

TOKENS, TOKEN_MASK = "observation.language.tokens", "observation.language.attention_mask"


class VLAField(nn.Module):
    """A LeRobot policy as a :class:`budwood_flow_rl.fields.FlowField` whose observations are :class:`Prefix`.

    With ``train_expert_only`` everything that the prefix reads is frozen and encoded without gradient, so the prefix of a
    minibatch is a constant; without, what LeRobot left trainable gets gradients through the prefix too. The policy stays in
    evaluation mode, in collection and update alike: dropout or random crops between the two would be taken for a change of
    the policy. ``feat`` is (B, H, feat_dim) float32, what the last projection reads: it knows the observation, the time and
    the chunk.

    :raises BindingError: the policy's settings exclude replaying a chain; see ``refusals``.
    """

    noise_time = True
    """The network's own time: True if 1 is noise and 0 is data (t = 1 - s, v_s = -v_t), False if it is data time."""
    critic_hidden: tuple[int, ...] = (512, 256, 128)

    def __init__(self, policy: PreTrainedPolicy, train_expert_only: bool = True) -> None:
        super().__init__()
        refuse_settings(policy)
        self.policy = policy.eval()
        self.frozen = train_expert_only
        if self.frozen:
            for module in self.trunk():
                module.requires_grad_(False)

    horizon: int
    action_dim: int
    summary_dim: int
    steps: int
    """Dp and H of a chunk, width of ``Prefix.summary``, and K, in how many steps the policy itself integrates."""

    @property
    def real_dim(self) -> int:
        """De: dimensions of the robot's action; the others are padding."""
        return int(self.policy.config.action_feature.shape[0])

    @property
    def executed(self) -> int:
        """Steps of a chunk that LeRobot executes before it asks again."""
        return int(self.policy.config.n_action_steps)

    @property
    def feat_dim(self) -> int:
        return int(self.head().in_features)

    def trunk(self) -> list[nn.Module]:
        """What the prefix is made of."""
        raise NotImplementedError

    def head(self) -> Any:
        """The linear layer that gives velocities."""
        raise NotImplementedError

    def encode(self, observation: Mapping[str, Tensor]) -> Prefix:
        """Observations as the policy's pre-processor leaves them, (B, ...) each, as a prefix of B rows."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self._encode(observation)

    def velocity(self, x: Tensor, s: Tensor, o: Prefix, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-> v (B, H, Dp) in data time and feat (B, H, feat_dim). ``h`` (B,), the step to be taken, only rounds the time."""
        tokens: list[Tensor] = []
        hook = self.head().register_forward_pre_hook(lambda _layer, inputs: tokens.append(inputs[0]))
        try:
            v = self._denoise(x, noise_time(s, h) if self.noise_time else s, o)
        finally:
            hook.remove()
        return (-v if self.noise_time else v), precise(tokens[-1])

    def train(self, mode: bool = True) -> VLAField:
        super().train(mode)
        self.policy.eval()
        return self

    def _encode(self, observation: Mapping[str, Tensor]) -> Prefix:
        raise NotImplementedError

    def _denoise(self, x: Tensor, time: Tensor, o: Prefix) -> Tensor:
        """The network's velocity (B, H, Dp) in its own time and direction."""
        raise NotImplementedError


class PI05Field(VLAField):
    """pi05: images and language, the state being part of the prompt."""

    critic_hidden = (1024, 512, 256)

    def __init__(self, policy: PreTrainedPolicy, train_expert_only: bool = True) -> None:
        super().__init__(policy, train_expert_only)
        config = policy.config
        self.horizon, self.action_dim, self.steps = config.chunk_size, config.max_action_dim, config.num_inference_steps
        self.summary_dim = self._vlm().paligemma.config.text_config.hidden_size

    def _vlm(self) -> Any:
        return self.policy.model.paligemma_with_expert

    def trunk(self) -> list[nn.Module]:
        return [self._vlm().paligemma]

    def head(self) -> Any:
        return self.policy.model.action_out_proj

    def _encode(self, observation: Mapping[str, Tensor]) -> Prefix:
        images, image_masks = self.policy._preprocess_images(observation)
        language = entry(observation, TOKENS), entry(observation, TOKEN_MASK)
        tokens, pad_mask, attend = self.policy.model.embed_prefix(images, image_masks, *language)
        self._vlm().paligemma.model.language_model.config._attn_implementation = (
            "eager"  # as LeRobot does before each pass
        )
        (outputs, _), cache = self._vlm().forward(
            attention_mask=prepare_attention_masks_4d(make_att_2d_masks(pad_mask, attend)),
            position_ids=pad_mask.cumsum(1) - 1,
            past_key_values=None,
            inputs_embeds=[tokens, None],
            use_cache=True,
        )
        return Prefix(pooled(outputs, pad_mask), pad_mask, cache)

    def _denoise(self, x: Tensor, time: Tensor, o: Prefix) -> Tensor:
        v: Tensor = self.policy.model.denoise_step(
            prefix_pad_masks=o.pad_mask, past_key_values=o.cache, x_t=x, timestep=time
        )
        return v


class PI0Field(PI05Field):
    """pi0: as pi05, and the state is a token beside the actions, so the critic's summary has it appended."""

    critic_hidden = (512, 256, 128)

    def __init__(self, policy: PreTrainedPolicy, train_expert_only: bool = True) -> None:
        super().__init__(policy, train_expert_only)
        self.summary_dim += policy.config.max_state_dim

    def _encode(self, observation: Mapping[str, Tensor]) -> Prefix:
        entry(observation, "observation.state")
        prefix = super()._encode(observation)
        state = self.policy.prepare_state(observation)
        return Prefix(torch.cat([prefix.summary, state.float()], dim=1), prefix.pad_mask, prefix.cache, state)

    def _denoise(self, x: Tensor, time: Tensor, o: Prefix) -> Tensor:
        v: Tensor = self.policy.model.denoise_step(
            state=o.state, prefix_pad_masks=o.pad_mask, past_key_values=o.cache, x_t=x, timestep=time
        )
        return v


class SmolVLAField(VLAField):
    """smolvla: images, language and the state as the prefix's last token, which the mean of many tokens would drown: the
    critic's summary has the state appended. The projection of the state is part of the trunk."""

    def __init__(self, policy: PreTrainedPolicy, train_expert_only: bool = True) -> None:
        super().__init__(policy, train_expert_only)
        config = policy.config
        self.horizon, self.action_dim, self.steps = config.chunk_size, config.max_action_dim, config.num_steps
        self.summary_dim = policy.model.vlm_with_expert.config.text_config.hidden_size + config.max_state_dim

    def trunk(self) -> list[nn.Module]:
        return [self.policy.model.vlm_with_expert.vlm, self.policy.model.state_proj]

    def head(self) -> Any:
        return self.policy.model.action_out_proj

    def _encode(self, observation: Mapping[str, Tensor]) -> Prefix:
        entry(observation, "observation.state")
        images, image_masks = self.policy.prepare_images(observation)
        state = self.policy.prepare_state(observation)
        language = entry(observation, TOKENS), entry(observation, TOKEN_MASK)
        tokens, pad_mask, attend = self.policy.model.embed_prefix(images, image_masks, *language, state=state)
        (outputs, _), cache = self.policy.model.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(pad_mask, attend),
            position_ids=pad_mask.cumsum(1) - 1,
            past_key_values=None,
            inputs_embeds=[tokens, None],
            use_cache=True,
        )
        return Prefix(torch.cat([pooled(outputs, pad_mask), state.float()], dim=1), pad_mask, cache)

    def _denoise(self, x: Tensor, time: Tensor, o: Prefix) -> Tensor:
        v: Tensor = self.policy.model.denoise_step(
            prefix_pad_masks=o.pad_mask, past_key_values=o.cache, x_t=x, timestep=time
        )
        return v


class DiTField(VLAField):
    """multi_task_dit with its flow-matching objective: data time, no padding, and one vector as its condition."""

    noise_time = False

    def __init__(self, policy: PreTrainedPolicy, train_expert_only: bool = True) -> None:
        super().__init__(policy, train_expert_only)
        config = policy.config
        self.horizon, self.action_dim, self.steps = config.horizon, self.real_dim, config.num_integration_steps
        self.summary_dim = policy.observation_encoder.conditioning_dim

    def trunk(self) -> list[nn.Module]:
        return [self.policy.observation_encoder]

    def head(self) -> Any:
        return self.policy.noise_predictor.output_proj

    def _encode(self, observation: Mapping[str, Tensor]) -> Prefix:
        cameras = list(self.policy.config.image_features)
        batch = {
            "observation.state": entry(observation, "observation.state").unsqueeze(1)
        }  # (B, 1, D), a history of one
        if cameras:
            batch["observation.images"] = torch.stack([entry(observation, name) for name in cameras], dim=1).unsqueeze(
                1
            )
        for name in (TOKENS, TOKEN_MASK):
            batch[name] = entry(observation, name)
        return Prefix(self.policy.observation_encoder.encode(batch))

    def _denoise(self, x: Tensor, time: Tensor, o: Prefix) -> Tensor:
        v: Tensor = self.policy.noise_predictor(x, time, conditioning_vec=o.summary)
        return v


FIELDS: Mapping[str, type[VLAField]] = {
    "pi0": PI0Field,
    "pi05": PI05Field,
    "smolvla": SmolVLAField,
    "multi_task_dit": DiTField,
}


def field_of(policy: PreTrainedPolicy, train_expert_only: bool = True) -> VLAField:
    """The field of a policy that LeRobot loaded; its parameters are trained in place.

    :raises BindingError: it is no flow policy that is known here.
    """
    kind = policy.config.type
    if kind not in FIELDS:
        raise unknown_kind(kind, FIELDS)
    return FIELDS[kind](policy, train_expert_only)


def noise_time(s: Tensor, h: Tensor | None) -> Tensor:
    """t = 1 - s; on the grid of steps h = 1/K it is the float that LeRobot has, (K - k)/K, which 1 - s misses by a rounding
    for K such as 3 or 10."""
    t = 1 - s
    if h is None:
        return t
    K = torch.round(1 / h)
    left = torch.round(t * K)
    return torch.where((t * K - left).abs() < 1e-4, left / K, t)


def entry(observation: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in observation:
        raise BindingError(
            f"the policy reads {name!r}, and the observation has only {', '.join(sorted(observation))}",
            where="flow policy",
            do="Run the policy's own pre-processor on observations before they reach the policy, with a task given",
        )
    return observation[name]
