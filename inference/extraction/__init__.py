"""Schema and text to prompts, answers to entities with offsets. Read extraction_form.py first."""
