"""Load a checkpoint, with an adapter attached where one is given. Read checkpoint_loading.py first."""
