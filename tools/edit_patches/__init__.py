"""Edits of a model's knowledge as small folders, and checkpoints with them. Read edited_folders.py first."""
