"""Check annotated triples with an NLI model or a language model. Read entailment_check.py first."""
