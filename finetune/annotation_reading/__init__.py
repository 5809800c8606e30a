"""Read annotated sentences from the formats of annotation tools and data sets.

Read annotated_sentences.py first (the data), then annotation_files.py (the table of formats), json_row_files.py
(formats with one JSON object per text) and annotation_checks.py (annotations that do not fit their text).
"""
