"""Load a checkpoint and, optionally, attach an adapter. Read checkpoint_loading.py first."""
