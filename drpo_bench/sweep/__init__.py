"""Sweeps: from an experiment file to finished runs."""
