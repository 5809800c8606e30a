"""Generate greedy answers to prompts in left-padded batches, for ie_run.py and during training."""

from typing import Any, NamedTuple

from chat_prompts.prompt_encoding import PromptEncoder

SLICE_TOKENS = 16  # generated before finished answers leave the batch
# transformers takes unset values from the checkpoint's generation_config.json, which may have a penalty.
GREEDY = {
    "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0,
    "min_new_tokens": 0,
}  # fmt: skip


class GeneratedAnswer(NamedTuple):
    """The text of an answer and the reason for its end."""

    text: str
    finish_reason: str  # as in OpenAI's API: "stop" at an end token, "length" at the limit of tokens or of the context


def generate_answers(
    model: Any, encoder: PromptEncoder, prompts: list[list[int]], batch_size: int, max_new_tokens: int
) -> list[GeneratedAnswer]:
    """Return the greedy answer to each prompt, up to EOS, the end-of-turn token of the template, or another end token.

    prompts: token ids of each. Prompts of similar length are in one batch, the longest first, so that a lack of memory
    shows in the first batch. The attention mask is computed from the lengths, so any id can be the pad id. An answer
    also ends at the last position of the model; prompts that leave fewer than max_new_tokens positions are answered one
    by one.
    """
    import sys

    import torch
    from torch.nn.utils.rnn import pad_sequence
    from tqdm import tqdm
    from transformers import GenerationConfig

    eos = model.generation_config.eos_token_id
    ends = {*encoder.stop_ids, *(eos if isinstance(eos, list | tuple) else [eos])} - {None}
    settings = GenerationConfig(
        **GREEDY, max_new_tokens=max_new_tokens, eos_token_id=sorted(ends), pad_token_id=min(ends),
        bos_token_id=encoder.tokenizer.bos_token_id,
    )  # fmt: skip
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    answers = [GeneratedAnswer("", "length")] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    bar = tqdm(total=len(prompts), desc="answering", unit="example", disable=None, leave=False)
    start = 0
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


def generate_batch(model: Any, ids: Any, mask: Any, settings: Any) -> list[list[int]]:
    """Return at most settings.max_new_tokens new token ids of each row of a left-padded batch.

    ids, mask: (rows, tokens) int64. A result may have padding after its first end token. Finished rows leave the batch
    every SLICE_TOKENS tokens; one call of transformers' `generate` would continue all rows until the longest is
    finished. Under ZeRO-3, all ranks must call the model equally often, so there is one call.
    """
    import torch
    from transformers.integrations import is_deepspeed_zero3_enabled

    prompt, limit, ends = ids.shape[1], settings.max_new_tokens, set(settings.eos_token_id)
    answers: list[list[int]] = [[] for _ in ids]
    rows, cache = list(range(len(ids))), None
    settings.return_dict_in_generate = True
    while rows:
        done = ids.shape[1] - prompt
        settings.max_new_tokens = limit - done if is_deepspeed_zero3_enabled() else min(SLICE_TOKENS, limit - done)
        with torch.no_grad():
            output = model.generate(
                input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=settings
            )
        ids, cache = output.sequences, output.past_key_values
        for row, tokens in zip(rows, ids[:, prompt:].tolist(), strict=True):
            answers[row] = tokens
        finished = [ids.shape[1] - prompt >= limit or not ends.isdisjoint(answers[row]) for row in rows]
        if not all(finished):
            kept = torch.tensor([at for at, ended in enumerate(finished) if not ended], device=ids.device)
            ids, mask = ids[kept], mask[kept]
            mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
            cache.batch_select_indices(kept)
        rows = [row for row, ended in zip(rows, finished, strict=True) if not ended]
    return answers
