"""Estimate the GPU memory of demos, server and tuning, and print it as a table. Read gpu_uses.py first."""
