"""Frozen sources of depth latents, and controls that take their place."""
