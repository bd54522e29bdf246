"""One file per command: a typed function whose signature and docstring are its options and help."""
