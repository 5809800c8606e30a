"""Checkpoints to resume from: complete ones only, and only by the run that wrote them.

Read complete_checkpoints.py first.
"""
