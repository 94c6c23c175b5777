"""`drpo-bench reproduce`: a recorded run trained again from its config.json, and every number compared."""
