"""Data sets of the Hugging Face hub: which one is meant, and what its table holds."""
