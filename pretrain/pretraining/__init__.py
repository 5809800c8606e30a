"""The training run: options, checks, Trainer, log, checkpoints. Read pretraining_trainer.py first."""
