"""Choose an attention backend that implements all operations of a model's attention."""

from typing import Any


def attention_backend(config: Any, requested: str | None = None) -> str | None:
    """Return attn_implementation for from_pretrained: `requested`, else "eager" if SDPA would be wrong, else None.

    transformers' SDPA backend omits the soft-capping of the attention scores (Gemma 2) without an error, so such a
    model gets eager attention. None selects the default of transformers. config: the model's configuration, which may
    contain a text configuration. Raises ValueError if sdpa was requested for such a model.
    """
    if not getattr(config.get_text_config(), "attn_logit_softcapping", None):
        return requested
    if requested == "sdpa":
        raise ValueError("sdpa attention omits this model's soft-capping (attn_logit_softcapping); use eager")
    return requested or "eager"
