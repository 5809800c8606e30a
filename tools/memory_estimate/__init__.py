"""Estimate the GPU memory that training a model takes, from its config.json alone. Read model_shape.py first."""
