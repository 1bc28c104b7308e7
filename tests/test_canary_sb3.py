"""What the adapter overrides or relies on in Stable-Baselines3 without it being promised: the source, as last read.

A changed hash is no bug. It says that a seam has to be read again before the newer version is allowed; ``docs/seams``
names what each rests on. The hashes are of the syntax without docstrings, so comments and layout do not count.
"""

from __future__ import annotations

import pytest

from budwood.testing import source_hash

SB3 = "stable_baselines3"
READ: dict[str, tuple[str, str]] = {
    f"{SB3}.ppo.ppo:PPO.train": ("f294ad0df8cefa87", "PPOUpdate.train"),
    f"{SB3}.a2c.a2c:A2C.train": ("1a26bac79a0925df", "A2CUpdate.train"),
    f"{SB3}.sac.sac:SAC.train": ("816c75c8e91ee46d", "SACUpdate.train"),
    f"{SB3}.sac.sac:SAC._setup_model": ("45fb004a16b50eea", "reset_policy"),
    f"{SB3}.td3.td3:TD3._setup_model": ("1334a2d5212268d6", "reset_policy"),
    f"{SB3}.dqn.dqn:DQN._setup_model": ("8daa64cbe00bf145", "reset_policy"),
    f"{SB3}.ppo.ppo:PPO._setup_model": ("4c57b1bfdb5444e3", "reset_policy"),
    f"{SB3}.common.on_policy_algorithm:OnPolicyAlgorithm.collect_rollouts": (
        "71b0419b7be6d677",
        "boundaries, bootstrap, terms of a row; what it asks its environments for in several processes",
    ),
    f"{SB3}.common.on_policy_algorithm:OnPolicyAlgorithm.learn": (
        "8fc8d0b1fa9d316a",
        "boundaries, order of log and update",
    ),
    f"{SB3}.common.on_policy_algorithm:OnPolicyAlgorithm._setup_model": (
        "746d16f961f69fe1",
        "reset_policy, Grafted._setup_model",
    ),
    f"{SB3}.common.off_policy_algorithm:OffPolicyAlgorithm.collect_rollouts": ("dbf2edd4ad514c44", "boundaries"),
    f"{SB3}.common.off_policy_algorithm:OffPolicyAlgorithm.learn": ("dad474c3bb242a51", "boundaries"),
    f"{SB3}.common.off_policy_algorithm:OffPolicyAlgorithm._setup_model": (
        "5ce6738c8e0df4dd",
        "reset_policy, Grafted._setup_model",
    ),
    f"{SB3}.common.off_policy_algorithm:OffPolicyAlgorithm._setup_learn": ("6defaab54bf08dad", "resume"),
    f"{SB3}.common.off_policy_algorithm:OffPolicyAlgorithm._store_transition": (
        "4fb11989504da212",
        "terms of a replay row",
    ),
    f"{SB3}.common.base_class:BaseAlgorithm._setup_learn": ("9349dea1f996e7a1", "resume, logger, callbacks"),
    f"{SB3}.common.base_class:BaseAlgorithm._update_info_buffer": ("9416df06b79b1fce", "Together._update_info_buffer"),
    f"{SB3}.common.base_class:BaseAlgorithm.set_random_seed": ("e23f98bf86d21fb9", "Together.set_random_seed"),
    f"{SB3}.common.running_mean_std:RunningMeanStd.update": ("12cad0ceb88c5e77", "SharedMeanStd.update"),
    f"{SB3}.common.base_class:BaseAlgorithm._init_callback": ("e4a4b2793f65e801", "Grafted._init_callback"),
    f"{SB3}.common.base_class:BaseAlgorithm._excluded_save_params": ("0db5f0160199ccfd", "what a grafted model saves"),
    f"{SB3}.common.base_class:BaseAlgorithm.set_env": ("89be39bc5fac84c1", "Grafted.set_env"),
    f"{SB3}.common.base_class:BaseAlgorithm.load": ("fc7c27537767b1d1", "loading a grafted model"),
    f"{SB3}.common.base_class:BaseAlgorithm.save": ("0f125af7bdf748db", "export"),
    f"{SB3}.common.callbacks:BaseCallback.on_step": ("25aeea6bdea87354", "no frame of ours a step"),
    f"{SB3}.common.logger:Logger.dump": ("8ffffc5ab24d7ac3", "EventWriter, TermWriter"),
    f"{SB3}.common.buffers:RolloutBuffer.compute_returns_and_advantage": ("0014d2a4a89133c2", "advantage, relabelling"),
    f"{SB3}.common.buffers:RolloutBuffer.add": ("7af9befb497ea5b0", "terms of a row"),
    f"{SB3}.common.buffers:RolloutBuffer.get": ("f7777031ee0a0ac1", "relabelling before an update"),
    f"{SB3}.common.buffers:DictRolloutBuffer.get": ("5d3557394e588b2a", "relabelling before an update"),
    f"{SB3}.common.buffers:ReplayBuffer.add": ("0dfa558a5ced8279", "terms of a replay row"),
    f"{SB3}.common.buffers:ReplayBuffer._get_samples": ("507ae1a33c22d4fd", "relabelling when sampled"),
    f"{SB3}.common.buffers:DictReplayBuffer._get_samples": ("f0613288b3e0ccb5", "relabelling when sampled"),
    f"{SB3}.common.buffers:NStepReplayBuffer._get_samples": ("d6b71c71ad882e9d", "relabelling when sampled"),
    f"{SB3}.common.vec_env.dummy_vec_env:DummyVecEnv.step_wait": ("fc5b9ed7fe38a20f", "FastVecEnv.step_wait"),
    f"{SB3}.common.vec_env.dummy_vec_env:DummyVecEnv._obs_from_buf": ("77cd5b00dedd10f2", "FastVecEnv._obs_from_buf"),
    f"{SB3}.common.vec_env.vec_normalize:VecNormalize.step_wait": ("fcffc109aaa0669d", "placement of TermVecEnv"),
    f"{SB3}.common.env_util:make_vec_env": ("48f1553bb8f1fb38", "environments and their seeds"),
    f"{SB3}.common.evaluation:evaluate_policy": ("6a3adca3e6f0d21d", "evaluation counts as it does"),
    "sb3_contrib.ars.ars:ARS._do_one_update": ("c8dba541f7e30271", "ARS boundaries"),
    "sb3_contrib.ars.ars:ARS.learn": ("cf0e44f62baf432d", "ARS boundaries"),
    "sb3_contrib.ppo_recurrent.ppo_recurrent:RecurrentPPO._setup_model": ("76591e699c9572c9", "reset_policy"),
    "sb3_contrib.ppo_recurrent.ppo_recurrent:RecurrentPPO.collect_rollouts": (
        "15bb4da596a8cee3",
        "boundaries, terms of a row",
    ),
    "sb3_contrib.ppo_mask.ppo_mask:MaskablePPO._setup_model": ("c9855dfdbb5a5927", "reset_policy"),
    "sb3_contrib.ppo_mask.ppo_mask:MaskablePPO.collect_rollouts": ("5defa37eb56390c2", "boundaries, terms of a row"),
    "sb3_contrib.ppo_mask.ppo_mask:MaskablePPO.learn": ("60bcb0a7ac166fdf", "boundaries, order of log and update"),
    "sb3_contrib.common.recurrent.buffers:RecurrentRolloutBuffer.get": (
        "9c9df135a5f506f8",
        "relabelling before an update",
    ),
    "sb3_contrib.common.maskable.buffers:MaskableRolloutBuffer.get": (
        "874a8f106b169e95",
        "relabelling before an update",
    ),
}


@pytest.mark.parametrize("place", READ)
def test_the_source_is_as_it_was_read(place: str) -> None:
    expected, seam = READ[place]
    assert source_hash(place) == expected, f"{place} has changed: re-read seam {seam}"
