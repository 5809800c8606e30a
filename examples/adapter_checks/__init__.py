"""Check that an adapter's files are complete and fit their base, before either is loaded. Read base_fit.py first."""
