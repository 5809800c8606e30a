"""Read, hash and write the tensors of checkpoint folders. Read tensors.py first."""
