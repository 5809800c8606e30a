"""Tune a model: options, model and adapter, data, Trainer, result folder. Read instruction_trainer.py first."""
