"""Rollout engines: what samples responses and reports the behaviour policy's logprobs."""
