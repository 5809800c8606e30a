"""Quantise a checkpoint and measure what it costs. Read quantization_methods.py first."""
