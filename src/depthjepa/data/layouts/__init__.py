"""How data lies on disk: one file a layout."""
