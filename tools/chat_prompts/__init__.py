"""Encode messages as token ids for tuning, generation, demos, server and calibration. Read prompt_encoding.py first."""
