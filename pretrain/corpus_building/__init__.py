"""Text files to samples of token ids. Read corpus_build.py first; segmentation.py cuts a document into samples."""
