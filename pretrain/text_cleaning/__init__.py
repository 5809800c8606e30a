"""Drop documents of poor quality and duplicates. Read cleaning_stages.py first."""
