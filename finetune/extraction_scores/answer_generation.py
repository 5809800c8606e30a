"""Generate greedy answers to prompts in left-padded batches, for ie_run.py and during training."""

from collections.abc import Iterator
from typing import Any

from chat_prompts.prompt_encoding import PromptEncoder


def batches_by_length(prompts: list[list[int]], size: int) -> Iterator[list[int]]:
    """Yield indices of prompts of similar length, the longest first, so that running out of memory shows at once."""
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    yield from (order[start : start + size] for start in range(0, len(order), size))


def generate_answers(
    model: Any, encoder: PromptEncoder, prompts: list[list[int]], batch_size: int, max_new_tokens: int
) -> list[str]:
    """Return the greedy continuation of each prompt (token ids) as text, up to EOS or the template's end of turn.

    The attention mask is computed from the lengths, so any id can be the pad id.
    """
    import torch
    from tqdm import tqdm
    from transformers import GenerationConfig

    eos = model.generation_config.eos_token_id
    ends = {*encoder.stop_ids, *(eos if isinstance(eos, list | tuple) else [eos])} - {None}
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=min(ends),
        bos_token_id=encoder.tokenizer.bos_token_id,
    )
    texts = [""] * len(prompts)
    bar = tqdm(total=len(prompts), desc="answering", unit="example", disable=None, leave=False)
    for members in batches_by_length(prompts, batch_size):
        width = max(len(prompts[index]) for index in members)
        input_ids = torch.full((len(members), width), min(ends))  # (examples, tokens)
        attention_mask = torch.zeros_like(input_ids)
        for place, index in enumerate(members):
            length = len(prompts[index])
            input_ids[place, width - length :] = torch.tensor(prompts[index])
            attention_mask[place, width - length :] = 1
        with torch.no_grad():
            output = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                generation_config=settings,
            )
        for index, ids in zip(members, output[:, width:].tolist(), strict=True):
            end = next((at for at, token in enumerate(ids) if token in ends), len(ids))
            texts[index] = encoder.tokenizer.decode(ids[:end], skip_special_tokens=True)
        bar.update(len(members))
    bar.close()
    return texts
