"""Turn edits into token ids: the question after several prefixes, the new answer with its end, prompts that must stay.

Prefixes are texts that the model writes itself, so that a key does not depend on what precedes the question (Meng et
al. 2022, section 3.1). The answer ends as the model's answers end: in the end-of-turn token with a chat template, else
in a full stop. Without this end, an edited model repeats the new object.
"""

import re
from collections.abc import Sequence

import torch

from knowledge_editing.edit_encoding import EditEncoder
from knowledge_editing.edit_files import Edit
from knowledge_editing.editable_model import EditableModel, pad_right
from knowledge_editing.target_vectors import Rewriting

CHINESE = re.compile(r"[\u4e00-\u9fff]")
PREFIX_TOKENS = 10
TOP_K = 5  # sampled prefixes, as in the published statistics of ROME


def sample_prefixes(model: EditableModel, encoder: EditEncoder, number: int, seed: int = 0) -> list[str]:
    """Return beginnings of text that the model writes: each ends in ". ", or "。" for Chinese text."""
    if not number:
        return []
    generator = torch.Generator().manual_seed(seed)
    ids = [encoder.text_ids("") or [0] for _ in range(number)]
    for _ in range(PREFIX_TOKENS):
        with torch.no_grad():
            logits = model.model(input_ids=pad_right(ids, model.model.device), use_cache=False).logits[:, -1].float()
        top = logits.cpu().topk(TOP_K)
        drawn = torch.multinomial(top.values.softmax(-1), 1, generator=generator)
        ids = [[*row, int(index)] for row, index in zip(ids, top.indices.gather(1, drawn)[:, 0], strict=True)]
    texts = [" ".join(encoder.decode(row[1:]).split()) for row in ids]
    return [text + ("。" if CHINESE.search(text) else ". ") for text in texts if text]


def essence(subject: str) -> str:
    """Return a prompt about what a subject is, whose continuation must stay (ROME's essence drift)."""
    return f"{subject}是" if CHINESE.search(subject) else f"{subject} is a"


def make_rewriting(
    edit: Edit, encoder: EditEncoder, prefixes: Sequence[str] = (), kept: Sequence[str] = (), at_end: bool = False
) -> Rewriting:
    """Return an edit as token ids.

    prefixes: texts before the question. kept: prompts whose next token must keep its distribution. at_end: change the
    last position of the question; otherwise the last token of the subject. Raises ValueError with the place of the edit
    if it has no subject but needs one, or if its target becomes no token.
    """
    if not (edit.subject or at_end):
        raise ValueError(
            f"{edit.location}: the edit has no subject, which this method changes; name it, or use ft-m, ft-l or lora"
        )

    def position(prompt: list[int], text: str, subject: str) -> int:
        if at_end:
            return len(prompt) - 1
        return encoder.subject_end(text, subject)

    questions = ["", *prefixes]
    texts = [prefix + edit.question for prefix in questions]
    prompts = [encoder.prompt_ids(text) for text in texts]
    positions = [position(ids, text, edit.subject) for ids, text in zip(prompts, texts, strict=True)]
    kept_ids = [encoder.prompt_ids(text) for text in kept]
    kept_positions = [
        position(ids, text, edit.subject) if edit.subject and edit.subject in text else -1
        for ids, text in zip(kept_ids, kept, strict=True)
    ]
    return Rewriting(
        tuple(prompts), tuple(positions), encoder.answer_ids(edit.question, edit.target), tuple(kept_ids),
        tuple(kept_positions),
    )  # fmt: skip
