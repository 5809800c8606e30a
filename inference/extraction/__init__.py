"""Extraction: prompts from a schema and a text, items with offsets from the answers. Read extraction_form.py first."""
