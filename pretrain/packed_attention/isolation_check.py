"""Check on a loaded model that the segments of a packed sequence do not attend to each other.

With a backend that ignores segments, samples attend to each other, and neither PyTorch nor transformers reports it.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from packed_attention.segment_attention import NAME, Segment, attention_arguments

HALF = 8  # tokens; half of a test sequence
# Largest difference that counts as rounding, as a share of the difference that a missing prefix causes. In bfloat16,
# rounding is 5 % of it in a LLaMA of 30 layers with random ids (48 % with the ids 1 to 5, which are control tokens).
ROUNDING = 0.2


def keeps_segments_apart(model: Any, implementation: str, device: torch.device) -> bool:
    """Return whether the logits of a segment are bit-identical when the segment before it changes.

    All ranks call it, as ZeRO-3 requires.
    """
    two = [Segment(HALF), Segment(HALF)]
    one, other = (_logits(model, implementation, device, two, seed) for seed in (1, 2))
    return torch.equal(one, other)


def shares_prefixes(model: Any, implementation: str, device: torch.device) -> bool:
    """Return whether logits stay equal, within rounding, when the first half of a segment becomes a shared prefix.

    False for all backends except NAME.
    """
    if implementation != NAME:
        return False
    layouts = [Segment(2 * HALF)], [Segment(HALF), Segment(HALF, parent=0)], [Segment(HALF), Segment(HALF)]
    whole, cut, without = (_logits(model, implementation, device, segments).float() for segments in layouts)
    return bool((cut - whole).norm() <= ROUNDING * (without - whole).norm())


def _logits(
    model: Any, implementation: str, device: torch.device, segments: list[Segment], seed: int = 1
) -> torch.Tensor:
    """Run a batch of two copies of a sequence; return the logits of each second half, (2, HALF, vocabulary).

    The ids are random. seed: seed of the ids of the first half.
    """
    unwrapped = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    vocabulary = unwrapped.config.get_text_config().vocab_size
    first, second = (
        torch.randint(vocabulary, (HALF,), generator=torch.Generator().manual_seed(number)) for number in (seed, 0)
    )
    starts = [0 if segment.parent is None else segments[segment.parent].length for segment in segments]
    positions = [torch.arange(start, start + segment.length) for start, segment in zip(starts, segments, strict=True)]
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(
            input_ids=torch.cat([first, second]).expand(2, -1).to(device),
            position_ids=torch.cat(positions).expand(2, -1).to(device), use_cache=False,
            **attention_arguments(implementation, [segments, segments], device),
        ).logits  # fmt: skip
    model.train(training)
    return logits[:, HALF:]
