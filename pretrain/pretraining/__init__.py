"""Continued pretraining: options, checks, trainer, memory estimates. Read pretraining_trainer.py first."""
