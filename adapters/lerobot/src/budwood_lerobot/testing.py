"""Tiny LeRobot policies with random weights, built without a network, for tests.

The classes are LeRobot's own; only their sizes, tokenizers and pretrained backbones are replaced. What a constructor
takes from a folder instead of the hub is written to a folder of yours. What it cannot be told (the sizes of pi0, pi05 and
pi0_fast, and the hub names of their tokenizers) is patched in LeRobot's modules inside `tiny_pi` and put back after it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from unittest.mock import patch

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy
    from torch import Tensor

Kind = Literal["act", "diffusion", "smolvla", "pi0", "pi05", "pi0_fast", "multi_task_dit"]
KINDS: tuple[Kind, ...] = get_args(Kind)

STATE, ACTION, SIDE, CHUNK, WIDTH, VOCABULARY = 6, 4, 64, 8, 64, 512
IMAGE = "observation.images.top"


def tiny_policy(kind: Kind, folder: Path, *, seed: int = 0, **config: Any) -> PreTrainedPolicy:
    """A LeRobot policy of that kind, small (0.1 to 0.4 M parameters; act and diffusion 11 M, a ResNet-18), on the CPU.

    `folder` receives tokenizers and backbone configurations; the policy's configuration names it, so keep it as long as
    the policy. `seed` decides the weights and leaves torch's generators as they were. `config` overrides fields of the
    kind's configuration. Features, unless overridden: observation.state (6,), observation.images.top (3, 64, 64),
    action (4,); chunks of 8 steps, 4 denoise steps, actions and states padded to 8 where the kind pads.

    multi_task_dit is built with the flow-matching objective, and the modulation that LeRobot starts at zero gets random
    weights, since otherwise nothing it observes would reach its output. A pi0, pi05 or pi0_fast saved from here has shapes
    that LeRobot's configuration cannot express: load it inside `tiny_pi`. pi0_fast trains, but LeRobot refuses to decode
    what random weights write (tokens that do not start with "Action:").
    """
    import torch

    if kind not in KINDS:
        raise ValueError(f"no tiny policy of kind {kind!r}; there are {', '.join(KINDS)}")
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]), ExitStack() as stack:
        if kind.startswith("pi0"):
            stack.enter_context(tiny_pi(folder))
        policy_class, settings = _settings(kind, folder)
        torch.manual_seed(seed)
        policy = policy_class(policy_class.config_class(**{**settings, **config}))
        if kind == "multi_task_dit":
            for block in policy.noise_predictor.transformer_blocks:
                torch.nn.init.normal_(block.adaLN_modulation[-1].weight, std=0.2)
        return policy.eval()


def tiny_batch(policy: PreTrainedPolicy, n: int, *, seed: int = 0) -> dict[str, Tensor]:
    """`n` random training samples: everything `policy.forward` reads, as its pre-processor would leave it.

    Observations (n, ...), or (n, n_obs_steps, ...) where the kind reads a history; action (n, horizon, D) in [-1, 1];
    language tokens of different lengths, so that padding is met.
    """
    import torch

    config = policy.config
    generator = torch.Generator().manual_seed(seed)
    history = (config.n_obs_steps,) if config.type in ("diffusion", "multi_task_dit") else ()
    batch = _observation(config, (n, *history), generator)
    horizon = config.horizon if history else config.chunk_size
    action = torch.randn(n, horizon, *config.action_feature.shape, generator=generator)
    batch["action"] = action.clamp(-1, 1)
    batch["action_is_pad"] = torch.zeros(n, horizon, dtype=torch.bool)
    if config.type == "pi0_fast":
        batch["action.tokens"] = torch.randint(4, 200, (n, 40), generator=generator)
        batch["action.token_mask"] = torch.ones(n, 40, dtype=torch.bool)
    return batch


def tiny_observation(policy: PreTrainedPolicy, n: int, *, seed: int = 0) -> dict[str, Tensor]:
    """`n` random observations as `policy.select_action` reads them: no action, and one step where the kind keeps a history."""
    import torch

    return _observation(policy.config, (n,), torch.Generator().manual_seed(seed))


@contextmanager
def tiny_pi(folder: Path) -> Iterator[None]:
    """While inside, LeRobot's pi0, pi05 and pi0_fast are built tiny and find their tokenizers in `folder`.

    Replaced in their modules: the Gemma sizes behind a variant's name (8 heads stay, they are written into a reshape), the
    vision tower's sizes, the vocabulary (512 instead of 257152), pi0_fast's action tokenizer (32 uniform bins instead of
    FAST), and the class by which the pre-processors load a tokenizer from the hub. Not for several threads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _toy_tokenizer().save_pretrained(folder)
    local, bins = _Local(_toy_tokenizer), _Local(UniformBins)
    with ExitStack() as stack:
        for name in ("pi0", "pi05", "pi0_fast"):
            module = importlib.import_module(f"lerobot.policies.{name}.modeling_{name}")
            stack.enter_context(patch.multiple(module, **_tiny_names(module)))
            if name == "pi0_fast":
                stack.enter_context(patch.multiple(module, AutoProcessor=bins, AutoTokenizer=local))
        processors = importlib.import_module("lerobot.processor.tokenizer_processor")
        stack.enter_context(patch.multiple(processors, AutoProcessor=bins, AutoTokenizer=local))
        yield


class UniformBins:
    """Stands in for the FAST action tokenizer: 32 uniform bins of [-1, 1] per value, without DCT or merges."""

    vocab_size, bins = 32, 32

    def __call__(self, actions: Any) -> list[list[int]]:
        """Token ids of actions (B, H, D), row by row."""
        import numpy as np

        scaled = (np.asarray(actions) + 1) / 2 * (self.bins - 1)
        return [row.reshape(-1).tolist() for row in np.clip(scaled.round(), 0, self.bins - 1).astype(int)]

    def decode(self, tokens: Any, *, time_horizon: int = CHUNK, action_dim: int = ACTION) -> Any:
        """Actions (B, time_horizon, action_dim) of token ids; missing ones decode to the middle bin."""
        import numpy as np

        size = time_horizon * action_dim
        rows = [(list(row) + [self.bins // 2] * size)[:size] for row in tokens]
        return (np.asarray(rows) / (self.bins - 1) * 2 - 1).reshape(-1, time_horizon, action_dim)


class _Local:
    """Answers the hub's loading function with a local object, whatever name is asked for."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def from_pretrained(self, name: str, **options: Any) -> Any:
        return self._make()


def _settings(kind: Kind, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The policy class and the tiny fields of its configuration."""
    from lerobot.configs.types import FeatureType, PolicyFeature

    settings: dict[str, Any] = {
        "input_features": {
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
            IMAGE: PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        "device": "cpu",
    }
    classes = {
        "act": "ACTPolicy",
        "diffusion": "DiffusionPolicy",
        "smolvla": "SmolVLAPolicy",
        "pi0": "PI0Policy",
        "pi05": "PI05Policy",
        "pi0_fast": "PI0FastPolicy",
        "multi_task_dit": "MultiTaskDiTPolicy",
    }
    policy_class = getattr(importlib.import_module(f"lerobot.policies.{kind}.modeling_{kind}"), classes[kind])
    chunk = {"chunk_size": CHUNK, "n_action_steps": CHUNK}
    padded = {"max_state_dim": 8, "max_action_dim": 8}
    if kind == "act":
        layers = {
            "n_encoder_layers": 1,
            "n_vae_encoder_layers": 1,
            "dim_model": 64,
            "n_heads": 4,
            "dim_feedforward": 128,
        }
        settings |= {**chunk, **layers, "pretrained_backbone_weights": None}
    elif kind == "diffusion":
        net = {"down_dims": (32, 64), "diffusion_step_embed_dim": 32, "num_train_timesteps": 10}
        settings |= {
            "horizon": CHUNK,
            "n_action_steps": 4,
            "n_obs_steps": 2,
            **net,
            "pretrained_backbone_weights": None,
        }
    elif kind == "smolvla":
        vlm = {"vlm_model_name": str(tiny_smolvlm(folder)), "load_vlm_weights": False, "num_vlm_layers": 2}
        images = {"resize_imgs_with_padding": (64, 64), "tokenizer_max_length": 48}
        settings |= {**chunk, **padded, **vlm, **images, "num_steps": 4, "expert_width_multiplier": 0.5}
    elif kind == "multi_task_dit":
        vision, text = map(str, _clip(folder))
        net = {"hidden_dim": 32, "num_layers": 2, "num_heads": 2, "timestep_embed_dim": 16, "dropout": 0.0}
        settings |= {"horizon": CHUNK, "n_obs_steps": 2, "n_action_steps": 7, **net, "tokenizer_max_length": 48}
        settings |= {"objective": "flow_matching", "num_integration_steps": 4}
        settings |= {"vision_encoder_name": vision, "text_encoder_name": text, "image_crop_shape": None}
    else:
        settings |= {**chunk, "dtype": "float32", "tokenizer_max_length": 96}
        if kind == "pi0_fast":
            settings |= {"text_tokenizer_name": str(folder)}
        else:
            settings |= {**padded, "image_resolution": (56, 56), "num_inference_steps": 4}
    return policy_class, settings


def _observation(config: Any, lead: tuple[int, ...], generator: Any) -> dict[str, Tensor]:
    import torch

    n = lead[0]
    batch = {
        name: torch.rand(*lead, *feature.shape, generator=generator)
        if name in config.image_features
        else torch.randn(*lead, *feature.shape, generator=generator)
        for name, feature in config.input_features.items()
    }
    if not hasattr(config, "tokenizer_max_length"):
        return batch
    length = config.tokenizer_max_length
    lengths = torch.randint(length // 2, length + 1, (n, 1), generator=generator)
    mask = torch.arange(length) < lengths  # (n, length)
    tokens = torch.randint(4, 200, (n, length), generator=generator)
    return {
        **batch,
        "observation.language.tokens": tokens * mask,
        "observation.language.attention_mask": mask,
    }


def _toy_tokenizer(extra: tuple[str, ...] = (), named: Mapping[str, str] | None = None) -> Any:
    """A byte-level tokenizer of some 300 entries, without merges: no vocabulary has to be fetched."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    entries = ["<pad>", "<s>", "</s>", "<unk>", *extra, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=dict(named or {}),
    )


def tiny_smolvlm(folder: Path) -> Path:
    """What SmolVLA reads from `vlm_model_name`: a configuration, an image processor and a tokenizer."""
    hub: Any = importlib.import_module("transformers")  # whose types do not know the fields of its configurations
    out = folder / "tiny-smolvlm"
    if (out / "config.json").exists():
        return out
    named = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    grid = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
    tokenizer = _toy_tokenizer((*named.values(), *grid), named)
    text = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
    }
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    hub.SmolVLMConfig(
        text_config=text,
        vision_config={**vision, "image_size": 64, "patch_size": 16},
        scale_factor=2,
        pad_token_id=0,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    ).save_pretrained(out)
    hub.SmolVLMProcessor(
        image_processor=hub.SmolVLMImageProcessor(),
        tokenizer=tokenizer,
        video_processor=hub.SmolVLMVideoProcessor(),
    ).save_pretrained(out)
    return out


def _clip(folder: Path) -> tuple[Path, Path]:
    """Random CLIP towers for 64 x 64 images and text, as multi_task_dit loads them by name (it must contain "clip")."""
    hub: Any = importlib.import_module("transformers")
    vision, text = folder / "tiny-clip-vision", folder / "tiny-clip-text"
    if not (text / "config.json").exists():
        tokenizer = _toy_tokenizer()
        sizes: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        ids: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        hub.CLIPVisionModel(hub.CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=16)).save_pretrained(vision)
        hub.CLIPTextModel(hub.CLIPTextConfig(**sizes, vocab_size=len(tokenizer), **ids)).save_pretrained(text)
        tokenizer.save_pretrained(text)
    return vision, text


def _tiny_names(module: Any) -> dict[str, Any]:
    """Replacements for the names by which a pi module decides its sizes."""
    tiny = module.GemmaConfig(width=WIDTH, depth=2, mlp_dim=2 * WIDTH, num_heads=8, num_kv_heads=1, head_dim=16)
    names: dict[str, Any] = {"get_gemma_config": lambda _variant: tiny}
    vlm = module.PaliGemmaForConditionalGenerationWithPiGemma

    def tiny_vlm(config: Any) -> Any:
        vision = config.vision_config
        vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers, vision.num_attention_heads = (
            32,
            64,
            2,
            2,
        )
        vision.projection_dim = config.text_config.hidden_size
        config.text_config.vocab_size = VOCABULARY
        return vlm(config=config)

    names["PaliGemmaForConditionalGenerationWithPiGemma"] = tiny_vlm
    if hasattr(module, "PiGemmaForCausalLM"):
        expert = module.PiGemmaForCausalLM

        def tiny_expert(config: Any) -> Any:
            config.vocab_size = VOCABULARY
            return expert(config=config)

        names["PiGemmaForCausalLM"] = tiny_expert
    return names
