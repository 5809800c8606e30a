"""Try the grammars, schemas and patterns of requests within limits of time and size. Read grammar_checker.py first."""
