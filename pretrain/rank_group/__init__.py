"""The ranks of a run: process group, sums over ranks, user errors. Read ranks.py first."""
