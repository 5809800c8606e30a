"""Score extraction answers against the right ones. Read answer_scores.py first, then scored_files.py."""
