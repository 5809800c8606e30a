"""Continued pretraining: options, checks, Trainer, memory estimates. Read pretraining_trainer.py first."""
