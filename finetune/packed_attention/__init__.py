"""Attention that keeps the samples or examples of a packed sequence apart. Read segment_attention.py first."""
