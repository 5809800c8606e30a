"""Read spaCy's DocBin files (.spacy) without spaCy. Read docbin_reader.py first."""
