"""Find instruction rows, choose wordings and templates, and tokenise rows. Read tokenized_examples.py first."""
