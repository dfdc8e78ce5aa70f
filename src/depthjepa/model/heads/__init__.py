"""Heads: from tokens on the patch grid to a teacher's latents, or to numbers for every pixel."""
