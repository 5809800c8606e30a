"""Answer a file of instructions and texts; a killed run can be resumed. Read batch_run.py first."""
