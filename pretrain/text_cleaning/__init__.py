"""Drop duplicates, harmful offers and documents of poor quality. Read cleaning_stages.py first."""
