"""Ranks: processes that a launcher starts as one run. Read ranks.py first."""
