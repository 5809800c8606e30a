"""Find the weight files of a checkpoint folder that transformers and vLLM read. Read weight_files.py."""
