"""Continued pretraining: options, checks, trainer, hardware plan. Read pretraining_trainer.py first."""
