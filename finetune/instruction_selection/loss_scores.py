"""Perplexity and instruction-following difficulty (IFD) of answers, with a local checkpoint.

IFD (Li et al. 2023, https://arxiv.org/abs/2308.12032) is the loss of the answer after its instruction, divided by the
loss of the answer alone. Near 1, the instruction hardly helps: the model has something to learn from the row. Above 1,
the answer does not fit the instruction. The perplexity is exp(loss of the answer after its instruction).
"""

import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from chat_prompts.prompt_encoding import PromptEncoder
from json_rows.instruction_rows import messages_of
from tqdm import tqdm

from instruction_selection.candidate_rows import Candidate, RowFilter, Verdict, in_bounds

LOGIT_BYTES = 256 * 2**20  # of the logits of a batch in float32, unless a single row has more


class ScoredSequence(NamedTuple):
    """Token ids, of which those from `start` on are scored."""

    ids: list[int]
    start: int


class AnswerLoss(NamedTuple):
    """Mean losses of an answer's tokens, in nats, after the instruction and alone."""

    after_instruction: float
    alone: float

    @property
    def ifd(self) -> float:
        return self.after_instruction / self.alone if self.alone else 1.0

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.after_instruction, 700))


def encoded_answer(encoder: PromptEncoder, candidate: Candidate, cutoff: int) -> tuple[ScoredSequence, ScoredSequence]:
    """Return the last answer of a row after its prompt, and after BOS alone (or EOS, if there is no BOS).

    Both have the same answer ids, up to `cutoff` tokens with the prompt. Raises ValueError if the template refuses the
    row, or if no token of the answer fits.
    """
    messages = messages_of(candidate.row)
    if encoder.template:
        turn = encoder.last_turns([messages])[0]
        prompt, answer = list(turn.prompt), list(turn.answer)
    else:
        prompt = encoder.prompt_ids(messages[:-1]) + encoder.text_ids("\n\n")
        answer = encoder.text_ids(messages[-1]["content"])
    answer = answer[: max(0, cutoff - len(prompt))]
    if not answer:
        raise ValueError(f"the prompt has {len(prompt)} of {cutoff} tokens" if prompt else "the answer has no tokens")
    tokenizer = encoder.tokenizer
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise ValueError("the tokenizer has neither BOS nor EOS to begin an answer with")
    return ScoredSequence(prompt + answer, len(prompt)), ScoredSequence([first, *answer], 1)


def mean_losses(model: Any, sequences: Sequence[ScoredSequence], batch_size: int) -> list[float]:
    """Return the mean cross-entropy of the scored tokens of each sequence, in nats.

    Sequences are sorted by length and padded on the right, where padding cannot influence a causal model. Only the
    logits of scored positions are computed, if the model supports `logits_to_keep`.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils.rnn import pad_sequence

    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    vocabulary = model.get_input_embeddings().weight.shape[0]
    losses = [0.0] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda at: -len(sequences[at].ids))
    bar = tqdm(total=len(sequences), desc="losses", unit="sequence", disable=None, leave=False)
    with torch.inference_mode():
        for members in loss_batches(sequences, order, batch_size, LOGIT_BYTES // (4 * vocabulary)):
            batch = [sequences[at] for at in members]
            ids = pad_sequence([torch.tensor(one.ids) for one in batch], batch_first=True).to(model.device)
            begin = min(one.start for one in batch) - 1 if keeps else 0  # the logits at t predict the token t + 1
            kept = {"logits_to_keep": torch.arange(begin, ids.shape[1] - 1, device=ids.device)} if keeps else {}
            logits = model(input_ids=ids, use_cache=False, **kept).logits
            for row, (at, one) in enumerate(zip(members, batch, strict=True)):
                predicted = logits[row, one.start - 1 - begin : len(one.ids) - 1 - begin].float()
                losses[at] = cross_entropy(predicted, ids[row, one.start : len(one.ids)]).item()
            bar.update(len(members))
    bar.close()
    return losses


def loss_batches(
    sequences: Sequence[ScoredSequence], order: Iterable[int], batch_size: int, positions: int
) -> Iterable[list[int]]:  # fmt: skip
    """Yield consecutive parts of `order` with at most batch_size rows and `positions` padded positions to predict."""
    members: list[int] = []
    longest = first = 0
    for at in order:
        one = sequences[at]
        new_longest, new_first = max(longest, len(one.ids)), min(first, one.start) if members else one.start
        if members and (
            len(members) == batch_size or (len(members) + 1) * (new_longest - new_first + 1) > positions
        ):  # fmt: skip
            yield members
            members, new_longest, new_first = [], len(one.ids), one.start
        members.append(at)
        longest, first = new_longest, new_first
    if members:
        yield members


class LossScorer:
    """Computes the losses of rows once, for both filters."""

    def __init__(self, model: Any, encoder: PromptEncoder, cutoff: int, batch_size: int) -> None:
        """cutoff: maximum tokens of prompt and answer; the rest of a longer answer is not scored."""
        self.model, self.encoder, self.cutoff, self.batch_size = model, encoder, cutoff, batch_size
        self.losses: dict[int, AnswerLoss | str] = {}  # candidate's number -> losses, or why there are none

    def score(self, candidates: Sequence[Candidate]) -> list[AnswerLoss | str]:
        """Return the losses of each candidate, or the reason why it has none."""
        new = [candidate for candidate in candidates if candidate.number not in self.losses]
        pairs: dict[int, tuple[ScoredSequence, ScoredSequence]] = {}
        for candidate in new:
            try:
                pairs[candidate.number] = encoded_answer(self.encoder, candidate, self.cutoff)
            except ValueError as error:
                self.losses[candidate.number] = f"cannot be scored: {error}"
        losses = mean_losses(self.model, [one for pair in pairs.values() for one in pair], self.batch_size)
        for number, after, alone in zip(pairs, losses[::2], losses[1::2], strict=True):
            self.losses[number] = AnswerLoss(after, alone)
        return [self.losses[candidate.number] for candidate in candidates]

    def perplexity_filter(self, lowest: float, highest: float) -> RowFilter:
        """Return a filter by perplexity; highest: 0 for no limit. Rows without a score are rejected."""

        def judge(candidates: Sequence[Candidate]) -> Iterable[Verdict]:
            for loss in self.score(candidates):
                if isinstance(loss, str):
                    yield Verdict(False, None, loss)
                else:
                    yield in_bounds(loss.perplexity, lowest, highest, "perplexity")

        return RowFilter("perplexity", judge)

    def ifd_filter(self, lowest: float, highest: float) -> RowFilter:
        """Return a filter by IFD; highest: 0 for no limit. Rows without a score are rejected."""

        def judge(candidates: Sequence[Candidate]) -> Iterable[Verdict]:
            for loss in self.score(candidates):
                if isinstance(loss, str):
                    yield Verdict(False, None, loss)
                    continue
                verdict = in_bounds(loss.ifd, lowest, highest, "IFD")
                losses = f"loss {loss.after_instruction:.3f} after the instruction, {loss.alone:.3f} alone"
                yield verdict._replace(reason=f"{verdict.reason} ({losses})")

        return RowFilter("ifd", judge)
