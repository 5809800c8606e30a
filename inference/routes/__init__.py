"""The HTTP routes /generate and /extract. Read generate_api.py first."""
