"""Ask an OpenAI-compatible endpoint; a killed run resumes. Read endpoint_rows.py first."""
