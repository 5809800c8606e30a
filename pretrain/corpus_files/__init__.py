"""Read, write, merge, prune, import and inspect the memory-mapped corpus on disk. Read corpus.py first."""
