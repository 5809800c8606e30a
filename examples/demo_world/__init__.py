"""Data, model and summary of the quick start. Read world_builder.py first."""
