"""A new folder is written as `<target>.partial` and then renamed. Read resume_journal.py first."""
