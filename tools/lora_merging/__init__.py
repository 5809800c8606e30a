"""Add LoRA products to the weights of their base. Read lora_merge.py first."""
