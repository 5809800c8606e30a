"""Convert annotations to extraction examples, and instruction rows to token ids. Read tokenized_examples.py first."""
