"""Messages to token ids, the same in tuning, asking, demos, server and calibration. Read prompt_encoding.py first."""
