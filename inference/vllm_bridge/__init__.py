"""All imports from vLLM, and all changes to its behaviour. Read vllm_hooks.py first."""
