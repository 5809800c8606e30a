"""Generate text with a loaded checkpoint, and stream it."""

import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
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


def resolve_decoding(suite: Mapping[str, object], given: Mapping[str, object]) -> Decoding:
    """Return the decoding settings of a suite of cases, overridden by the user's options.

    Raises ValueError on a name that Decoding does not have and on a value of another type (1e2 counts as int).
    """
    chosen: dict[str, Any] = {}
    kinds: dict[str, type] = {field.name: type(getattr(Decoding, field.name)) for field in fields(Decoding)}
    for name, value in {**suite, **given}.items():
        if name not in kinds:
            raise ValueError(f"unknown option --{name}; see --help (decoding options: {', '.join(kinds)})")
        kind = kinds[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (isinstance(value, bool) if kind is bool else is_number and kind(value) == value):
            raise ValueError(f"--{name} takes {kind.__name__}, not {value!r}")
        chosen[name] = kind(value)
    return Decoding(**chosen)


# --- generation -------------------------------------------------------------------------------------------------------


def generation_config(checkpoint: Checkpoint, ids: list[int], how: Decoding) -> Any:
    """Return a GenerationConfig whose max_new_tokens fits into the model's context.

    Without do_sample, the sampling settings are transformers' defaults, so that those of the checkpoint's own
    generation_config.json have no effect. Raises ValueError on an empty prompt and on one that fills the context.
    """
    from transformers import GenerationConfig

    model = checkpoint.model
    context = getattr(model.config, "max_position_embeddings", None) or len(ids) + how.max_new_tokens
    room = context - len(ids)
    if not ids or room < 1:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, the model reads 1 to {context - 1}; change the length of the text"
        )
    arguments = asdict(how) | {"max_new_tokens": min(how.max_new_tokens, room)}
    if not how.do_sample:
        arguments |= {"temperature": 1.0, "top_p": 1.0, "top_k": 50}
    own = model.generation_config.eos_token_id
    ends = {*checkpoint.encoder.stop_ids, *(own if isinstance(own, list) else [own])} - {None}
    return GenerationConfig(**arguments, eos_token_id=sorted(ends) or None, pad_token_id=min(ends, default=0))


def decode_new(tokenizer: Any, ids: list[int], new: list[int]) -> str:
    """Return the text of the new ids, decoded after the prompt: LLaMA's decoder drops a space at the text's start."""
    before = tokenizer.decode(ids, skip_special_tokens=True)
    whole = tokenizer.decode(ids + new, skip_special_tokens=True)
    return whole.removeprefix(before) if whole.startswith(before) else tokenizer.decode(new, skip_special_tokens=True)


def decode_complete(tokenizer: Any, ids: list[int], new: list[int], shown: str) -> str:
    """Return the text of the new ids, or `shown`, the previous text, while the last character is incomplete.

    LLaMA encodes most Chinese characters as bytes. It decodes a run of bytes to replacement characters while the last
    character of the run is incomplete.
    """
    text = decode_new(tokenizer, ids, new)
    return shown if text.endswith("\ufffd") else text


def stream(checkpoint: Checkpoint, ids: list[int], how: Decoding) -> Iterator[GeneratedText]:
    """Yield the text generated for the prompt ids as it grows; the last item has an ending.

    With several beams, items before the last one have a token count but no text. Generation runs in a thread, which
    ends within one token after the caller closes this iterator. Raises the exceptions of generate().
    """
    import torch
    from transformers import StoppingCriteriaList
    from transformers.generation.streamers import BaseStreamer

    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    config = generation_config(checkpoint, ids, how)
    events: queue.Queue[Any] = queue.Queue()
    closed = threading.Event()

    class TokenQueue(BaseStreamer):
        def put(self, value: Any) -> None:
            events.put(value.flatten().tolist())

        def end(self) -> None:
            """The result in the queue marks the end."""

    def should_stop(input_ids: Any, scores: Any, **_: object) -> Any:
        if how.num_beams > 1:  # transformers does not stream beams
            events.put(input_ids.shape[1] - len(ids))
        return torch.full((input_ids.shape[0],), closed.is_set(), dtype=torch.bool, device=input_ids.device)

    def generate_answer() -> None:
        prompt = torch.tensor([ids], device=model.device)  # (1, tokens) int64
        try:
            with torch.inference_mode():
                output = model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), generation_config=config,
                    streamer=TokenQueue() if how.num_beams == 1 else None,
                    stopping_criteria=StoppingCriteriaList([should_stop]),
                )  # fmt: skip
            events.put(output[0])
        except Exception as error:
            events.put(error)

    thread = threading.Thread(target=generate_answer, name="generation", daemon=True)
    thread.start()
    new: list[int] = []
    shown = ""
    is_prompt = True  # generate() passes the prompt to the streamer first
    try:
        while isinstance(event := events.get(), list | int):
            if isinstance(event, int):
                yield GeneratedText("", event, "")
            elif not is_prompt:
                new += event
                shown = decode_complete(tokenizer, ids, new, shown)
                yield GeneratedText(shown, len(new), "")
            is_prompt = False
    finally:
        closed.set()
        thread.join()
    if isinstance(event, Exception):
        raise event
    yield finished_text(tokenizer, ids, event[len(ids) :].tolist(), config)


def finished_text(tokenizer: Any, ids: list[int], new: list[int], config: Any) -> GeneratedText:
    """Return the finished text, without the end token and the padding of shorter beams."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    at = next((i for i, token in enumerate(new) if token in ends), None)
    kept = new if at is None else new[:at]
    ending = "length" if at is None else "complete"
    return GeneratedText(decode_new(tokenizer, ids, kept), len(kept), ending)


def generate(checkpoint: Checkpoint, ids: list[int], how: Decoding) -> GeneratedText:
    """Return the finished text for the prompt ids."""
    *_, text = stream(checkpoint, ids, how)
    return text
