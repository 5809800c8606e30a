"""Find the complete checkpoints of a run, and check that the run that resumes has the same settings.

Read complete_checkpoints.py first.
"""
