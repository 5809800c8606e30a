"""Build an exact tokenizer.json from LLaMA's tokenizer.model and check it. Read sentencepiece_tokenizer.py first."""
