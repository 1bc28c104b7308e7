"""What the adapter calls or relies on in LeRobot without it being promised: the source, as last read.

A changed hash is no bug. It says that a seam has to be read again before the newer version is allowed. The hashes are of the
syntax without docstrings, so comments and layout do not count.
"""

from __future__ import annotations

import pytest

from budwood.testing import source_hash

TRAIN, EVAL = "lerobot.scripts.lerobot_train", "lerobot.scripts.lerobot_eval"
READ: dict[str, tuple[str, str]] = {
    f"{TRAIN}:update_policy": ("6ed66fe9db8b5192", "the step, policy.update as a grafted boundary"),
    f"{TRAIN}:train": ("19b7674a4a585587", "order of the blocks, overrides of saved processors, loss on held-out rows"),
    f"{EVAL}:rollout": ("43a415b4ac771901", "Watched"),
    f"{EVAL}:eval_policy": ("ad6a9308010f5588", "order of episodes and seeds, inside_slurm"),
    f"{EVAL}:eval_one": ("9e21b973991f8b4c", "order of episodes"),
    f"{EVAL}:run_one": ("049b7b445ddbd712", "order of episodes"),
    f"{EVAL}:eval_policy_all": ("66b98ff1e966dba6", "success_rate"),
    "lerobot.datasets.factory:make_dataset": ("7a0c60491eb92a2d", "datasets_of"),
    "lerobot.datasets.factory:make_train_eval_datasets": ("9d31fe14481afa81", "datasets_of"),
    "lerobot.datasets.sampler:EpisodeAwareSampler.__iter__": ("ec773611c3e5dbb7", "order of rows"),
    "lerobot.datasets.sampler:EpisodeAwareSampler._iter_epoch": ("1ebd86d6c2ec1898", "order of rows"),
    "lerobot.datasets.sampler:compute_sampler_state": ("4a4e95e668dea0d1", "order of rows"),
    "lerobot.policies.factory:make_policy": ("be334293f500cb39", "policy_of"),
    "lerobot.policies.factory:make_pre_post_processors": ("52f2055aa40387d8", "assembled"),
    "lerobot.optim.factory:make_optimizer_and_scheduler": ("02a6092a5cb94fbe", "assembled"),
    "lerobot.common.train_utils:save_checkpoint": ("8d89194e98acf26f", "export"),
    "lerobot.configs.train:TrainPipelineConfig.validate": ("473dd150e0a49442", "without_arguments, presets"),
    "lerobot.configs.policies:PreTrainedConfig.from_pretrained": ("f7ae8142ed1f0039", "policy_config"),
    "lerobot.configs.parser:load_plugin": ("3c61eb7383663b2b", "discover"),
    "lerobot.utils.import_utils:register_third_party_plugins": ("6cdd58e70dd99936", "discover"),
    "lerobot.utils.import_utils:get_safe_default_video_backend": ("3d495e311436de05", "video_backend"),
    "lerobot.utils.logging_utils:MetricsTracker.__init__": ("ce232a6e3b15dfdf", "numbers of a resumed run"),
    "lerobot.utils.logging_utils:MetricsTracker.update_metrics": ("575a2ed4c566cab3", "meters"),
    "lerobot.utils.logging_utils:MetricsTracker.to_dict": ("8a3423ad52afc6b8", "what is logged"),
    "torch.utils.data.dataloader:_BaseDataLoaderIter.__init__": ("faf1ad4f19552275", "when a generator is put back"),
}


@pytest.mark.parametrize("place", READ)
def test_the_source_is_as_it_was_read(place: str) -> None:
    expected, seam = READ[place]
    assert source_hash(place) == expected, f"{place} has changed: re-read seam {seam}"
