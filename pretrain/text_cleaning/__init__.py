"""Drop duplicates, harmful text and documents of poor quality. Read cleaning_stages.py first."""
