"""Merge LoRA adapters into their base. Read lora_merge.py first."""
