"""Diffs between two sets of weights: exact and additive. Read exact_diff.py first."""
