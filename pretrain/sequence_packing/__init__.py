"""Pack samples into sequences, order them by source weights, and make batches. Read packed_sequences.py first."""
