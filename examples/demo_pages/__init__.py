"""The demos of a checkpoint: loading, generation, terminal and web page. Read text_generation.py first."""
