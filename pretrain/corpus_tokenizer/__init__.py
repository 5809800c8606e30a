"""Text to token ids for the corpus, checked against SentencePiece. Read document_encoder.py first."""
