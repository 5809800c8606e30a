"""Tokenizers of LLaMA-family folders with exactly SentencePiece's ids. Read tokenizer_folders.py first."""
