"""Weight files of a model folder, diffs given as models, Python code of a model. Read weight_files.py first."""
