"""The memory-mapped corpus on disk: read, write, merge, prune, import, inspect. Read corpus.py first."""
