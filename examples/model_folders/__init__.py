"""Weight files, Python code and attention of a model; diffs given as models. Read weight_files.py first."""
