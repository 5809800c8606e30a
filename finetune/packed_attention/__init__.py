"""Attention within the samples or examples of a packed sequence. Read segment_attention.py first."""
