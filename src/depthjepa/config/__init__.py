"""One typed configuration of a run: declared, read from recipes and KEY=VALUE, put into words."""
