"""Detect whether a text is English or Chinese, and parse language names. Read language_detection.py."""
