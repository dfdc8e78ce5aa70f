"""Tar shards: where they lie, what is in them, and how bytes of them are had."""
