"""Measure edits of a model's knowledge before and after. Read scored_edits.py first."""
