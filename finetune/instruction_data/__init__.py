"""Instruction rows to token ids and supervised spans. Read instructions.py first."""
