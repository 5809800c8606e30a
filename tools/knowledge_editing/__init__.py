"""Change facts in a model's weights. Read edit_files.py first, then edit_encoding.py."""
