"""The shared part of both trainers: losses by source, log, stop by SIGTERM, result folder.

Read source_trainer.py first.
"""
