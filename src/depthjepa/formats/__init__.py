"""Checkpoints of other libraries: reading, writing and renaming their tensors."""
