"""Loggers: where the figures of a run go while it trains, one file each."""
