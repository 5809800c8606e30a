"""Read annotated sentences from the formats of annotation tools and data sets. Read annotated_sentences.py first."""
