"""Reports on extraction answers: figures of a published scorer, confusions, comparisons and a page of the errors.

Read item_outcomes.py first: it pairs the predicted with the correct items of a row. published_scorer.py is independent
of the other modules.
"""
