"""Try the grammars, schemas and patterns of requests within bounds. Read grammar_checker.py first."""
