"""Shared by both trainers: losses by source, the log, stopping on SIGTERM, the result folder.

Read source_trainer.py first.
"""
