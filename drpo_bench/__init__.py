"""drpo-bench: a reproducible experiment suite for the policy losses of LLM RL."""

__version__ = "0.1.0"
