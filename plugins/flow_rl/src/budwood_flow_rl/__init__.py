"""Online reinforcement learning for flow-matching policies: ReinFlow, Flow-Noise and Flow-SDE."""
