"""Whether a text is English or Chinese, and the names of these languages. Read language_detection.py."""
