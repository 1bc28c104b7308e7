"""Reward shaping as a search over the weights of heuristic terms, guided by whether the task is done (MORSE)."""
