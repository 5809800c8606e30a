"""Find dates and numbers in English and Chinese text, and compare them by value. Read literal_mentions.py first."""
