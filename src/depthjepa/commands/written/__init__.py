"""Layouts in which checkpoints are written: one file and one row each."""
