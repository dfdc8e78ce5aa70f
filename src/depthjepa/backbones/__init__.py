"""Encoders that are measured, whoever made them: one file a family."""
