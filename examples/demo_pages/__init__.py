"""Terminal and web demos of a checkpoint. Read text_generation.py first."""
