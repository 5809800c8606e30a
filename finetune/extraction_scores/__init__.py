"""Generate answers and score them as extraction. Read answer_generation.py first."""
