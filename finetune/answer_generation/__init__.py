"""Answer prompts with a loaded model, and score the answers during training. Read batched_generation.py first."""
