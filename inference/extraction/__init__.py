"""Build prompts from a schema and a text, and parse answers to items with offsets. Read extraction_form.py first."""
