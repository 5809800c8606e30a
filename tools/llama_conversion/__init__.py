"""Convert LLaMA's original weight files to a Hugging Face folder. Read llama_layout.py first."""
