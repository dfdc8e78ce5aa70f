"""`python -m depthjepa` is the command `depthjepa`."""

from depthjepa.cli import main

main()
