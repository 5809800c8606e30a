"""Build instruction rows for seven extraction tasks from annotated sentences. Read extraction_rows.py first."""
