"""Changes to objects of PEFT and bitsandbytes beyond their documented options.

| function | attribute | reason |
| --- | --- | --- |
| save_adapter_only | PeftModel.save_pretrained | Trainer calls it without save_embedding_layers, whose default |
| | | ("auto") also stores the base's embedding or output matrix if the adapter targets it |
| keep_training_layout | bitsandbytes' Linear4bit.support_avx512bf16_for_cpu | in evaluation mode on a CPU, 4-bit |
| | | weights are packed into a layout without a backward pass |

tests/finetune/test_adapters.py checks that each attribute exists, with its signature, and takes effect.
"""

from functools import partial
from typing import Any


def save_adapter_only(model: Any) -> None:
    """Make a PeftModel's save_pretrained omit the base's embedding and output matrices."""
    model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)


def keep_training_layout(model: Any) -> None:
    """Keep 4-bit weights on a CPU in the layout that training needs."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
