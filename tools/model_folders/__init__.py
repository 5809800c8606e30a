"""Check the weight files of a model, load its own Python code, choose its attention. Read weight_files.py first."""
