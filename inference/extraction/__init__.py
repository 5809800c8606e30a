"""Extraction: schema and text to prompts, answers to items with offsets. Read extraction_form.py first."""
