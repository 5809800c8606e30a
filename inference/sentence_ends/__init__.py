"""Where sentences, clauses and words of Chinese and English text and of code end. Read sentence_boundaries.py first."""
