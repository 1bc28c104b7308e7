"""Environments of Isaac Lab, and of Isaac Sim where it is installed, for runs on Stable-Baselines3."""
