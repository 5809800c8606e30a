"""Seal checkpoint folders, verify seals, signatures and published hashes, compare weights. Read seal_check.py first."""
