"""The command line: thin commands over the library."""

from depthjepa.cli.program import USAGE, app, main

__all__ = ["USAGE", "app", "main"]
