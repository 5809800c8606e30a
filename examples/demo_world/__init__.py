"""Data and model of the quick start. Read world_builder.py first."""
