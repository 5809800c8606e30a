"""Answer a file of instructions; a killed run can be resumed. Read batch_run.py first."""
