"""Requests to token ids. Read prompt_ids.py first."""
