"""Check on a loaded model that the segments of a packed sequence do not attend to each other.

With a backend that ignores segments, samples attend to each other, and neither PyTorch nor transformers reports it.
"""

from typing import Any

import torch

from packed_attention.segment_attention import NAME, Segment, attention_arguments

HALF = 8  # tokens of a segment


def keeps_segments_apart(model: Any, implementation: str, device: torch.device) -> bool:
    """Return whether the logits of a segment are bit-identical when the segment before it changes.

    All ranks call it, as ZeRO-3 requires.
    """
    two = [Segment(HALF), Segment(HALF)]
    one, other = (_logits(model, implementation, device, two, modulus) for modulus in (3, 4))
    return torch.equal(one, other)


def shares_prefixes(model: Any, implementation: str, device: torch.device) -> bool:
    """Return whether a segment's logits are equal, within rounding, if its first tokens become a shared prefix."""
    if implementation != NAME:
        return False
    whole = _logits(model, implementation, device, [Segment(2 * HALF)]).float()
    cut = _logits(model, implementation, device, [Segment(HALF), Segment(HALF, parent=0)]).float()
    return torch.allclose(whole, cut, atol=1e-2 * whole.std().item(), rtol=1e-2)


def _logits(
    model: Any, implementation: str, device: torch.device, segments: list[Segment], modulus: int = 3
) -> torch.Tensor:
    """Return the logits of the second half of two equal sequences with these segments, (2, HALF, vocabulary).

    modulus: determines the ids of the first half, which are position % modulus + 1.
    """
    first, second = torch.arange(HALF) % modulus + 1, torch.arange(HALF) % 5 + 1
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
