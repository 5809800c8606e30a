"""Generate greedy answers to prompts in left-padded batches, for ie_run.py and during training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from chat_prompts.prompt_encoding import PromptEncoder

SLICE_TOKENS = 16  # tokens generated between two removals of finished rows from the batch


class GeneratedAnswer(NamedTuple):
    """The text of an answer and the reason for its end."""

    text: str
    finish_reason: str  # as in OpenAI's API: "stop" at an end token, "length" at the limit of tokens or of the context


def generate_answers(
    model: Any, encoder: PromptEncoder, prompts: list[list[int]], batch_size: int, max_new_tokens: int
) -> list[GeneratedAnswer]:
    """Return the greedy answer to each prompt, up to EOS, the end-of-turn token of the template, or another end token.

    prompts: token ids of each prompt. Prompts of similar length are in one batch, the longest first, so that a lack of
    memory shows in the first batch. The attention mask is computed from the lengths, so any id can be the pad id. An
    answer also ends at the last position of the model; prompts that leave fewer than max_new_tokens positions are
    answered one by one.
    """
    import sys

    import torch
    from torch.nn.utils.rnn import pad_sequence
    from tqdm import tqdm
    from transformers import GenerationConfig

    eos = model.generation_config.eos_token_id
    ends = {*encoder.stop_ids, *(eos if isinstance(eos, list | tuple) else [eos])} - {None}
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(ends), pad_token_id=min(ends),
        bos_token_id=encoder.tokenizer.bos_token_id,
    )  # fmt: skip
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    answers = [GeneratedAnswer("", "length")] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    bar = tqdm(total=len(prompts), desc="answering", unit="example", disable=None, leave=False)
    start = 0
    with only_settings(model, settings):
        while start < len(order):
            settings.max_new_tokens = min(max_new_tokens, context - len(prompts[order[start]]))
            members = order[start : start + (batch_size if settings.max_new_tokens == max_new_tokens else 1)]
            start += len(members)
            ids = [torch.tensor(prompts[index], device=model.device) for index in members]
            padded = pad_sequence(ids, batch_first=True, padding_value=min(ends), padding_side="left")
            mask = pad_sequence(list(map(torch.ones_like, ids)), batch_first=True, padding_side="left")
            for index, tokens in zip(members, generate_batch(model, padded, mask, settings), strict=True):
                end = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
                text = encoder.tokenizer.decode(tokens[:end], skip_special_tokens=True)
                answers[index] = GeneratedAnswer(text, "stop" if end < len(tokens) else "length")
            bar.update(len(members))
    bar.close()
    return answers


@contextmanager
def only_settings(model: Any, settings: Any) -> Iterator[None]:
    """Within the context, replace the checkpoint's own generation settings.

    Otherwise transformers' `generate` would take values that `settings` does not set, such as a repetition penalty,
    from the checkpoint.
    """
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's model has no own settings
    kept, owner.generation_config = owner.generation_config, settings
    try:
        yield
    finally:
        owner.generation_config = kept


def generate_batch(model: Any, ids: Any, mask: Any, settings: Any) -> list[list[int]]:
    """Return at most settings.max_new_tokens new token ids of each row of a left-padded batch.

    ids, mask: (rows, tokens) int64. A result may have padding after its first end token. Finished rows are removed from
    the batch every SLICE_TOKENS tokens; one call of transformers' `generate` would continue all rows until the longest
    is finished. Rows are not removed under ZeRO-3, where all ranks must call the model equally often. If the cache
    cannot be split (state-space and linear-attention layers), an unfinished batch is generated again, in one call.
    """
    import torch
    from transformers.integrations import is_deepspeed_zero3_enabled

    prompt, limit, ends = ids.shape[1], settings.max_new_tokens, set(settings.eos_token_id)

    def generate(tokens: int, cache: Any = None) -> Any:
        settings.max_new_tokens, settings.return_dict_in_generate = tokens, True
        with torch.no_grad():
            return model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=settings)

    answers: list[list[int]] = [[] for _ in ids]
    rows, cache = list(range(len(ids))), None
    size = limit if is_deepspeed_zero3_enabled() else SLICE_TOKENS
    while rows:
        output = generate(min(size, limit - (ids.shape[1] - prompt)), cache)
        for row, tokens in zip(rows, output.sequences[:, prompt:].tolist(), strict=True):
            answers[row] = tokens
        finished = [len(answers[row]) >= limit or not ends.isdisjoint(answers[row]) for row in rows]
        if all(finished):
            break
        if not can_be_split(output.past_key_values):
            size = limit  # the next call starts again at the prompt
            continue
        kept = torch.tensor([at for at, ended in enumerate(finished) if not ended], device=ids.device)
        ids, cache = output.sequences[kept], output.past_key_values
        cache.batch_select_indices(kept)
        mask = torch.nn.functional.pad(mask[kept], (0, ids.shape[1] - mask.shape[1]), value=1)
        rows = [row for row, ended in zip(rows, finished, strict=True) if not ended]
    return answers


def can_be_split(cache: Any) -> bool:
    """Return whether rows can be removed from a cache: all its layers are dynamic and have only keys and values."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    return type(cache) is DynamicCache and {type(layer) for layer in cache.layers} <= {
        DynamicLayer, DynamicSlidingWindowLayer,
    }  # fmt: skip
