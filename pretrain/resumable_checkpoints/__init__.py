"""Checkpoints to resume from: complete or ignored, and only by the run that wrote them.

Read complete_checkpoints.py first.
"""
