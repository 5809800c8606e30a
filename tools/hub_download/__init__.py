"""Download checkpoints from a hub or a mirror, resumed and verified. Read hub_files.py first."""
