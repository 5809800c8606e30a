"""Answer a file of instructions; a killed run can be resumed. Read batch_engine.py first."""
