"""Score extraction answers against the correct answers. Read answer_scores.py first, then row_scores.py."""
