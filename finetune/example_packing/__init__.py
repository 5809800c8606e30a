"""Select the examples of each training step, and pack them into sequences. Read example_batches.py first."""
