"""Samples to packed sequences, their order by source weights, and batches. Read packed_sequences.py first."""
