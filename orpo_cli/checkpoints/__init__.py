"""Checkpoints: written in the background, found, read and inspected."""
