"""What the adapter passes through or relies on in TRL and transformers without it being promised: the source, as last read.

A changed hash is no bug. It says that a seam has to be read again before the newer version is allowed. The hashes are of the
syntax without docstrings, so comments and layout do not count.
"""

from __future__ import annotations

import pytest

from budwood.testing import source_hash

GRPO, RLOO = "trl.trainer.grpo_trainer:GRPOTrainer", "trl.trainer.rloo_trainer:RLOOTrainer"
LOOP = "transformers.trainer:Trainer"
READ: dict[str, tuple[str, str]] = {
    f"{GRPO}.__init__": ("d19d2c5018d17673", "rewards, weights, rollout_func, generation settings"),
    f"{GRPO}._prepare_inputs": ("8609ae3072470707", "completions in hand"),
    f"{GRPO}.training_step": ("e9de7647bdddffdc", "count of micro-batches"),
    f"{GRPO}._calculate_rewards": ("a21d445f317bfb4a", "WithAdvantages, TRLTrainer.evaluate, keywords of a reward"),
    f"{GRPO}._tokenize_prompts": ("daa361762145f573", "rollout_func"),
    f"{GRPO}._generate_single_turn": ("ada2b92d9c38aa24", "rollout_func"),
    f"{GRPO}._generate": ("5737df737571f907", "rollout_func, TRLTrainer.evaluate"),
    f"{GRPO}._generate_and_score_completions": ("80ebd32c46413d78", "WithAdvantages"),
    f"{GRPO}._get_per_token_logps_and_entropies": ("e255a71f20ae3935", "WithLosses"),
    f"{GRPO}._compute_loss": ("0de902da0a4b5796", "WithLosses"),
    f"{GRPO}.compute_loss": ("b5083efc89ff8470", "WithLosses"),
    f"{GRPO}._get_train_sampler": ("b8797c497a6356dd", "order of rows"),
    f"{GRPO}.log": ("712d0ceddfb287bd", "order of log and boundary"),
    f"{RLOO}.__init__": ("713fe0eaf6febc0d", "rewards, weights, rollout_func, generation settings"),
    f"{RLOO}._prepare_inputs": ("8609ae3072470707", "completions in hand"),
    f"{RLOO}.training_step": ("e9de7647bdddffdc", "count of micro-batches"),
    f"{RLOO}._calculate_rewards": ("5332ab88c0ddc519", "WithAdvantages, TRLTrainer.evaluate, keywords of a reward"),
    f"{RLOO}._tokenize_prompts": ("0fbc0f3311004fa6", "rollout_func"),
    f"{RLOO}._generate_single_turn": ("bb5ff724937b9438", "rollout_func"),
    f"{RLOO}._generate": ("6ccd3b8885c47d83", "rollout_func, TRLTrainer.evaluate"),
    f"{RLOO}._generate_and_score_completions": ("2017f7ca5edbe5a4", "WithAdvantages"),
    f"{RLOO}._get_per_token_logps_and_entropies": ("e255a71f20ae3935", "WithLosses"),
    f"{RLOO}._compute_loss": ("67bc18faed977351", "WithLosses"),
    f"{RLOO}.compute_loss": ("34ef9dd4c8fe0af9", "WithLosses"),
    f"{RLOO}._get_train_sampler": ("b8797c497a6356dd", "order of rows"),
    f"{RLOO}.log": ("7a0d22c850da047a", "order of log and boundary"),
    "trl.trainer.dpo_trainer:DPOTrainer.compute_loss": ("381a5dce853a2f4c", "WithLosses"),
    "trl.trainer.dpo_trainer:DPOTrainer.log": ("ef9c401942012965", "order of log and boundary"),
    "trl.trainer.sft_trainer:SFTTrainer.compute_loss": ("688ec9db4685930c", "WithLosses"),
    "trl.trainer.sft_trainer:SFTTrainer.log": ("ef9c401942012965", "order of log and boundary"),
    "trl.trainer.reward_trainer:RewardTrainer.compute_loss": ("0f64df96b2cde586", "WithLosses"),
    "trl.trainer.reward_trainer:RewardTrainer.log": ("ef9c401942012965", "order of log and boundary"),
    "trl.trainer.kto_trainer:KTOTrainer.compute_loss": ("381a5dce853a2f4c", "WithLosses"),
    "trl.trainer.kto_trainer:KTOTrainer.log": ("ef9c401942012965", "order of log and boundary"),
    "trl.trainer.utils:RepeatSampler.__iter__": ("b41ea318dcaa67ab", "order of rows"),
    "trl.trainer.base_trainer:_BaseTrainer.__init__": ("321d9308c8f042e9", "share of a loss term"),
    f"{LOOP}.train": ("7fe9da51ed2b4a0b", "Resumed"),
    f"{LOOP}._inner_training_loop": ("dd725031a9bbc70e", "boundaries, restore_log"),
    f"{LOOP}._init_training_state": ("e9044b284f9316cb", "Resumed"),
    f"{LOOP}._prepare_for_training": ("e243c1b4d20f14ea", "Resumed"),
    f"{LOOP}._run_epoch": ("f5c70cfde41cd8e8", "boundaries, Resumed, generators"),
    f"{LOOP}._maybe_log_save_evaluate": ("425914f0fc2ceac1", "order of log and boundary"),
    f"{LOOP}._finalize_training": ("22a434022aea1008", "what a last checkpoint holds"),
    f"{LOOP}.training_step": ("4db4e81cdb8a3a22", "share of a loss term"),
    f"{LOOP}._load_from_checkpoint": ("6f907b8b88252d28", "Resumed"),
    f"{LOOP}._load_optimizer_and_scheduler": ("4608dc02a2131aa4", "Resumed"),
    f"{LOOP}._load_rng_state": ("3f566edabc66b9cd", "Resumed"),
    f"{LOOP}._load_scaler": ("d56cf5d1d595c900", "Resumed"),
    f"{LOOP}._get_train_sampler": ("4e87fff04db654bd", "order of rows"),
    f"{LOOP}.log": ("1d7db2c69740d15c", "Grafted"),
    f"{LOOP}.evaluate": ("c1f1849ad398bfde", "measure"),
    f"{LOOP}.set_initial_training_values": ("7b138e8ed40343a5", "Grafted"),
    "transformers.trainer_callback:TrainerState.load_from_json": ("c7332a1bd7634aeb", "Resumed"),
    "accelerate.data_loader:SeedableRandomSampler.__iter__": ("1e3b94a4f4fdc87d", "order of rows"),
}


@pytest.mark.parametrize("place", READ)
def test_the_source_is_as_it_was_read(place: str) -> None:
    expected, seam = READ[place]
    assert source_hash(place) == expected, f"{place} has changed: re-read seam {seam}"
