"""Read rows of JSON, JSONL and parquet files, and check instruction rows, in the same way in every stage.

Read row_files.py first (files, encodings, errors), then json_stream.py (the parser), instruction_rows.py (checks) and
compressed_files.py (damaged .gz and .zst files).
"""
