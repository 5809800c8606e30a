"""Convert checkpoints to GGUF files for llama.cpp. Read gguf_model.py first."""
