"""Shared by all layers: user errors, files, hardware, process groups."""
