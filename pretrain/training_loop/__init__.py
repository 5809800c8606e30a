"""What both trainers share around Trainer: loss by source, log, stop by SIGTERM, result folder.

Read source_trainer.py first.
"""
