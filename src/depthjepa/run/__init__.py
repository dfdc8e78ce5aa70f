"""A run around its loop: what is checked, how it begins, what it consists of, what it says of itself."""
