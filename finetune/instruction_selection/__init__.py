"""Select instruction rows: every filter gives a row a score and a reason, and keeps or rejects it.

Read candidate_rows.py first (rows, verdicts, filters in order), then text_filters.py, duplicate_rows.py, loss_scores.py
(perplexity and IFD), answer_judge.py and score_ranking.py.
"""
