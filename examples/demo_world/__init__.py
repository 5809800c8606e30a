"""The parts of the quick start: a small made-up world, a small LLaMA, the summary. Read world_builder.py first."""
