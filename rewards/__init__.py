"""Reward functions with the signature of TRL: pure functions of prompts, completions and dataset columns."""
