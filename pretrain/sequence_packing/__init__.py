"""Samples to batches of packed sequences: which, in which order, in which row. Read packed_rows.py first."""
