"""Quantise a checkpoint and measure the loss of quality. Read quantization_methods.py first."""
