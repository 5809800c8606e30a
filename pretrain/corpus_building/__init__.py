"""Build a corpus from text files. Read corpus_build.py first; segmentation.py cuts a document into samples."""
