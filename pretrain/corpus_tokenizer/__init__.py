"""Encode text for the corpus, and check the ids against SentencePiece. Read document_encoder.py first."""
