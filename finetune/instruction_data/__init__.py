"""Convert annotations to extraction examples, and examples to token ids. Read tokenized_examples.py first."""
