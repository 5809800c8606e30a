"""Summaries of the recipes, and the instruction rows that real_model.sh makes. Read real_model_summary.py first."""
