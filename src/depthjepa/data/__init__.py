"""Images and depth: samples, their order, paired crops and batches."""
