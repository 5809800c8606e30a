"""Build an exact tokenizer.json from LLaMA's tokenizer.model and check it. Read llama_tokenizer.py first."""
