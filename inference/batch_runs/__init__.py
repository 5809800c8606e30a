"""Answer a file of instructions, with resumption after a kill. Read batch_engine.py first."""
