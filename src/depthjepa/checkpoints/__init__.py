"""Checkpoints: what one holds, how it is written and read, and what other layouts tell."""
