"""Check and complete the server's options before a model is loaded. Read launch_args.py first."""
