"""The common parts of both trainers: options, losses by source, the log, stopping on signals, the result folder.

Read source_trainer.py first.
"""
