"""The tuning run: options, model and adapter, Trainer, log, result. Read instruction_trainer.py first."""
