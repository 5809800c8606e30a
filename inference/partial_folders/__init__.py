"""A new folder or file is written in `<target>.partial` and then renamed. Read atomic_outputs.py first."""
