"""Checks of the loss library that need no training: `drpo-bench losses verify`, and the tests run the same ones."""
