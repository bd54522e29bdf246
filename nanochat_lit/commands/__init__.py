"""One file a verb: a typed function whose signature and docstring are its options and help."""
