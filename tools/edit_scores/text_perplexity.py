"""Perplexity of plain text: overlapping windows, in which every token is counted once."""

from collections.abc import Sequence
from typing import Any

from knowledge_editing.edit_encoding import EditEncoder
from tqdm import tqdm

from edit_scores.model_answers import last_logits
from edit_scores.ratio_intervals import ratio_figure

WINDOW = 1024  # tokens; the context of a shorter model is its own


def text_losses(
    model: Any, encoder: EditEncoder, texts: Sequence[str], window: int = WINDOW, stride: int = 0
) -> list[tuple[float, int]]:
    """Return (sum of the negative log-likelihood in nats, number of counted tokens) of each text.

    A text is its BOS and its ids; BOS, or else the first token, is not counted. window: tokens that the model sees at
    once. stride: tokens by which the window moves; 0: half a window, so that a token has at least half a window of
    context or all earlier tokens.
    """
    import torch

    own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    window = max(min(window, own or window), 2)
    stride = stride or window // 2
    losses = []
    for text in tqdm(texts, desc="perplexity", unit="text", disable=None if len(texts) > 8 else True, leave=False):
        ids, total, counted = encoder.text_ids(text), 0.0, 0
        done = 1  # tokens of the text before the first that is not counted yet
        while done < len(ids):
            end = min(done + stride if done > 1 else window, len(ids))
            start = max(end - window, 0)
            part = torch.tensor([ids[start:end]], device=model.device)
            logits = last_logits(model, {"input_ids": part}, end - done + 1)[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, part[0, done - start :], reduction="sum").item()
            counted += end - done
            done = end
        losses.append((total, counted))
    return losses


def perplexity_figure(losses: Sequence[tuple[float, int]]) -> dict[str, float]:
    """Return {"value", "low", "high", "tokens", "texts"}: the perplexity and its 95 % interval over texts.

    Raises ValueError if no token is counted.
    """
    import numpy as np

    known = [(total, float(count)) for total, count in losses if count]
    if not known:
        raise ValueError("the held-out texts have fewer than two tokens each; give longer texts with --text")
    tokens = sum(count for _, count in losses)
    return ratio_figure(known, np.exp) | {"tokens": tokens, "texts": len(known)}
