"""Choose an attention backend that computes all of a model's attention."""

from typing import Any


def attention_backend(config: Any, requested: str | None = None) -> str | None:
    """Return the value of from_pretrained's attn_implementation: `requested`, or one that fits; None: its default.

    transformers' SDPA backend omits the soft-capping of the attention scores (Gemma 2) without an error, so such a
    model gets eager attention. config: of the model, with or without a text config inside. Raises ValueError if sdpa
    was requested for such a model.
    """
    if not getattr(config.get_text_config(), "attn_logit_softcapping", None):
        return requested
    if requested == "sdpa":
        raise ValueError("sdpa attention omits this model's soft-capping (attn_logit_softcapping); use eager")
    return requested or "eager"
