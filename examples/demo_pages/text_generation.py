"""Generate text with a loaded checkpoint, and stream it."""

import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, get_type_hints

from demo_pages.model_loading import Checkpoint


@dataclass(frozen=True)
class Decoding:
    """Decoding settings; raises ValueError on a value out of range."""

    max_new_tokens: int = 512
    num_beams: int = 1
    repetition_penalty: float = 1.0  # above 1 lowers the logits of tokens that the prompt or answer already has
    do_sample: bool = False  # sample tokens instead of greedy or beam search; required by the settings below
    temperature: float = 0.4  # below 1 sharpens the distribution
    top_p: float = 0.75  # probability mass of the candidates (nucleus sampling)
    top_k: int = 40  # number of candidates; 0: all

    def __post_init__(self) -> None:
        in_range = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "num_beams": self.num_beams >= 1,
            "repetition_penalty": self.repetition_penalty > 0,
            "temperature": self.temperature > 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
        }
        for name, fits in in_range.items():
            if not fits:
                raise ValueError(f"{name}={getattr(self, name)} is out of range; see Decoding in text_generation.py")


OPTIONS = get_type_hints(Decoding)  # name -> type


class GeneratedText(NamedTuple):
    """The text generated so far, its number of tokens, and how generation ended."""

    text: str
    new_tokens: int
    ending: str  # "" while it runs, then "complete" (end token) or "length" (max_new_tokens or context reached)


def resolve_decoding(suite: Mapping[str, Any], given: Mapping[str, Any]) -> Decoding:
    """Return the decoding settings of a suite of cases, overridden by the user's options.

    Raises ValueError on a name that Decoding does not have and on a value out of range.
    """
    settings = {**suite, **given}
    if unknown := sorted(settings.keys() - OPTIONS.keys()):
        raise ValueError(f"there is no decoding setting {unknown[0]}; the settings are {', '.join(OPTIONS)}")
    return Decoding(**{name: OPTIONS[name](value) for name, value in settings.items()})


def generation_config(checkpoint: Checkpoint, ids: list[int], decoding: Decoding) -> Any:
    """Return a GenerationConfig whose max_new_tokens fits into the model's context.

    Without do_sample, the sampling settings are transformers' defaults, so that the settings in the checkpoint's
    generation_config.json have no effect. Raises ValueError on an empty prompt and on one that fills the context.
    """
    from transformers import GenerationConfig

    model = checkpoint.model
    context = getattr(model.config, "max_position_embeddings", None) or len(ids) + decoding.max_new_tokens
    room = context - len(ids)
    if not ids or room < 1:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, the model accepts 1 to {context - 1}; change the length of the text"
        )
    arguments = asdict(decoding) | {"max_new_tokens": min(decoding.max_new_tokens, room)}
    if not decoding.do_sample:
        arguments |= {"temperature": 1.0, "top_p": 1.0, "top_k": 50}
    own = model.generation_config.eos_token_id
    ends = {*checkpoint.encoder.stop_ids, *(own if isinstance(own, list) else [own])} - {None}
    return GenerationConfig(**arguments, eos_token_id=sorted(ends) or None, pad_token_id=min(ends, default=0))


def decode_new(tokenizer: Any, ids: list[int], new: list[int]) -> str:
    """Return the text of the new ids, decoded after the prompt, since LLaMA's decoder drops a leading space."""
    before = tokenizer.decode(ids, skip_special_tokens=True)
    whole = tokenizer.decode(ids + new, skip_special_tokens=True)
    return whole.removeprefix(before) if whole.startswith(before) else tokenizer.decode(new, skip_special_tokens=True)


def decode_complete(tokenizer: Any, ids: list[int], new: list[int], shown: str) -> str:
    """Return the text of the new ids, or `shown`, the previous text, while the last character is incomplete.

    LLaMA encodes most Chinese characters as bytes, and decodes an incomplete character to replacement characters.
    """
    text = decode_new(tokenizer, ids, new)
    return shown if text.endswith("\ufffd") else text


def stream(checkpoint: Checkpoint, ids: list[int], decoding: Decoding) -> Iterator[GeneratedText]:
    """Yield the text generated for the prompt ids as it grows; the last item has an ending.

    With several beams, items before the last one have a token count but no text. Generation runs in a thread, which
    ends within one token after the caller closes this iterator. Raises the exceptions of generate().
    """
    import torch
    from transformers import StoppingCriteriaList

    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    config = generation_config(checkpoint, ids, decoding)
    states: queue.Queue[GeneratedText | Exception] = queue.Queue()
    closed = threading.Event()
    text = ""

    def after_each_token(input_ids: Any, scores: Any, **_: object) -> Any:
        """Add the new state to the queue; return whether to stop. input_ids: (beams, tokens so far)."""
        nonlocal text
        new = input_ids[0, len(ids) :].tolist()
        if decoding.num_beams == 1:  # with several beams, the best one is not known yet
            text = decode_complete(tokenizer, ids, new, text)
        states.put(GeneratedText(text, len(new), ""))
        return torch.full((input_ids.shape[0],), closed.is_set(), dtype=torch.bool, device=input_ids.device)

    def generate_answer() -> None:
        prompt = torch.tensor([ids], device=model.device)  # (1, tokens) int64
        try:
            with torch.inference_mode():
                output = model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), generation_config=config,
                    stopping_criteria=StoppingCriteriaList([after_each_token]),
                )  # fmt: skip
            states.put(finished_text(tokenizer, ids, output[0, len(ids) :].tolist(), config))
        except Exception as error:
            states.put(error)

    thread = threading.Thread(target=generate_answer, name="generation", daemon=True)
    thread.start()
    try:
        while True:
            state = states.get()
            if isinstance(state, Exception):
                raise state
            yield state
            if state.ending:
                return
    finally:
        closed.set()
        thread.join()


def finished_text(tokenizer: Any, ids: list[int], new: list[int], config: Any) -> GeneratedText:
    """Return the finished text, without the end token and the padding of shorter beams."""
    end = next((at for at, token in enumerate(new) if token in (config.eos_token_id or [])), None)
    return GeneratedText(decode_new(tokenizer, ids, new[:end]), len(new[:end]), "length" if end is None else "complete")


def generate(checkpoint: Checkpoint, ids: list[int], decoding: Decoding) -> GeneratedText:
    """Return the finished text for the prompt ids."""
    *_, text = stream(checkpoint, ids, decoding)
    return text
