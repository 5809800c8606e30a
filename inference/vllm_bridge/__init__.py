"""All imports from vLLM and changes of its behaviour. Read vllm_hooks.py first."""
