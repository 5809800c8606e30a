"""The examples of each training step, packed into sequences or padded. Read example_batches.py first."""
