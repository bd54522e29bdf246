"""From files or generators to batches: sources, packing, streams."""
