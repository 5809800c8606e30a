"""Select the examples of each training step, and pack or pad them. Read example_batches.py first."""
