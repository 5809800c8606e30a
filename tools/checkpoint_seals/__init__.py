"""Seal checkpoint folders, verify seals and checklists, compare weights. Read seal_check.py first."""
