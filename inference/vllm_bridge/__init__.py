"""Everything that this stage takes from vLLM or changes in it. Read vllm_hooks.py first."""
