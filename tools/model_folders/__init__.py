"""Weight files of a model folder, and Python code that comes with a model. Read weight_files.py first."""
