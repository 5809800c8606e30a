"""Convert checkpoints to GGUF files for llama.cpp and back. Read gguf_model.py first, then imported_model.py."""
