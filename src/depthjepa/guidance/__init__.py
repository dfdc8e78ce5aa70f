"""Depth as a training signal: teachers, and their targets."""
