"""Option parsing and exit handling shared by all commands: one line for an error, one line for Ctrl-C.

Read command_errors.py first, then fire_commands.py (small commands) or strict_parsers.py (argparse commands).
"""
