"""What the recipes show at their end, and the questions about facts that they ask. Read real_model_summary.py first."""
