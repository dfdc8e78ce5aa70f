"""Rendered street scenes with exact depth and labels."""
