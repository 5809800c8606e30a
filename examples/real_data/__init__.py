"""Questions about real facts, and the summary of real_model.sh. Read real_model_summary.py first."""
