"""The memory-mapped corpus on disk: read, write, merge, prune, import and inspect it. Read corpus.py first."""
