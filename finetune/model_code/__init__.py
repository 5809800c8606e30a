"""Python code that comes in a checkpoint folder, executed only on request. Read own_code.py first."""
