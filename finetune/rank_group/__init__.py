"""Ranks, the processes that a launcher starts as one run: joining, sums, user errors. Read ranks.py first."""
