"""`drpo-bench mismatch`: what the same weights say of the same tokens in every engine and number format."""
