"""Everything this stage takes from vLLM. Read vllm_imports.py first."""
