"""Answer a file of instructions, resumable. Read batch_engine.py first."""
