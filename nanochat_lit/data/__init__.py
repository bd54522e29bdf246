"""Data sources, packing, and streams of batches."""
