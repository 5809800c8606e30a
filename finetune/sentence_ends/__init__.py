"""Find the ends of sentences, clauses and words in Chinese, English and code. Read sentence_boundaries.py first."""
