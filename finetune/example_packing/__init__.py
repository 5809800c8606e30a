"""Which examples a step trains on and how they are packed into sequences. Read example_batches.py first."""
