"""Build a corpus from text files. Read corpus_build.py first; segmentation.py cuts documents into samples."""
