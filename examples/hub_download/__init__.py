"""Resumable, verified downloads of checkpoints from a hub or a mirror. Read hub_files.py first."""
