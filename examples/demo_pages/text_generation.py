"""Decoding and streaming on a loaded checkpoint."""

import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from demo_pages.model_loading import Checkpoint


@dataclass(frozen=True)
class Decoding:
    """How to decode; raises ValueError on a value out of range."""

    max_new_tokens: int = 512
    num_beams: int = 1
    repetition_penalty: float = 1.0  # above 1 makes tokens that were there before less likely
    do_sample: bool = False  # draw tokens instead of taking the likeliest; the rest counts only with it
    temperature: float = 0.4  # below 1 sharpens
    top_p: float = 0.75  # the share of probability that is drawn from
    top_k: int = 40  # the number of tokens that are drawn from; 0: all

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


class Answer(NamedTuple):
    """What was generated so far: its text, the number of new tokens, and how it ended."""

    text: str
    new_tokens: int
    ending: str  # "" while it runs, then "complete" (the model ended it) or "length" (cut)


def decoding(suite: Mapping[str, object], given: Mapping[str, object]) -> Decoding:
    """The decoding of a suite of cases, with the options that the user gave put over it.

    Raises ValueError on a name that Decoding does not have and on a value of another type (1e2 is an int here).
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
    """transformers' GenerationConfig; new tokens are cut to what the model's context leaves.

    Values that do not count are set to neutral ones, so that nothing of the checkpoint's own generation_config.json
    comes through. Raises ValueError when the prompt is empty or fills the context.
    """
    from transformers import GenerationConfig

    model = checkpoint.model
    context = getattr(model.config, "max_position_embeddings", None) or len(ids) + how.max_new_tokens
    room = context - len(ids)
    if not ids or room < 1:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, the model reads 1 to {context - 1}; change the text's length"
        )
    arguments = asdict(how) | {"max_new_tokens": min(how.max_new_tokens, room)}
    if not how.do_sample:
        arguments |= {"temperature": 1.0, "top_p": 1.0, "top_k": 50}
    own = model.generation_config.eos_token_id
    ends = {*checkpoint.encoder.stop_ids, *(own if isinstance(own, list) else [own])} - {None}
    return GenerationConfig(**arguments, eos_token_id=sorted(ends) or None, pad_token_id=min(ends, default=0))


def text_of(tokenizer: Any, ids: list[int], new: list[int]) -> str:
    """The text of the new ids. Decoded behind the prompt, since LLaMA's decoder drops the space a text begins with."""
    before = tokenizer.decode(ids, skip_special_tokens=True)
    whole = tokenizer.decode(ids + new, skip_special_tokens=True)
    return whole.removeprefix(before) if whole.startswith(before) else tokenizer.decode(new, skip_special_tokens=True)


def grown(tokenizer: Any, ids: list[int], new: list[int], shown: str) -> str:
    """The text of the new ids so far, or what was shown before while the last character is not complete.

    Most Chinese is bytes to LLaMA, and a run of bytes decodes as a whole or not at all: while its last character is
    on the way, the characters before it are gone as well.
    """
    text = text_of(tokenizer, ids, new)
    return shown if text.endswith("\ufffd") else text


def stream(checkpoint: Checkpoint, ids: list[int], how: Decoding) -> Iterator[Answer]:
    """Yield the growing answer to the prompt ids, the finished one last; with beams the states before have no text.

    Generation runs in a thread and ends early when the caller closes this iterator, which can be done at each state.
    Raises what generate raises.
    """
    import torch
    from transformers import StoppingCriteriaList
    from transformers.generation.streamers import BaseStreamer

    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    config = generation_config(checkpoint, ids, how)
    events: queue.Queue[Any] = queue.Queue()
    left = threading.Event()

    class Feed(BaseStreamer):
        def put(self, value: Any) -> None:
            events.put(value.flatten().tolist())

        def end(self) -> None:
            """Nothing: the result itself marks the end."""

    def is_left(input_ids: Any, scores: Any, **_: object) -> Any:
        if how.num_beams > 1:  # which transformers does not stream
            events.put(input_ids.shape[1] - len(ids))
        return torch.full((input_ids.shape[0],), left.is_set(), dtype=torch.bool, device=input_ids.device)

    def work() -> None:
        prompt = torch.tensor([ids], device=model.device)  # (1, tokens) int64
        try:
            with torch.inference_mode():
                output = model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), generation_config=config,
                    streamer=Feed() if how.num_beams == 1 else None, stopping_criteria=StoppingCriteriaList([is_left]),
                )  # fmt: skip
            events.put(output[0])
        except Exception as error:
            events.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    new: list[int] = []
    shown = ""
    is_prompt = True  # generate hands the prompt to a streamer first
    try:
        while isinstance(event := events.get(), list | int):
            if isinstance(event, int):
                yield Answer("", event, "")
            elif not is_prompt:
                new += event
                shown = grown(tokenizer, ids, new, shown)
                yield Answer(shown, len(new), "")
            is_prompt = False
    finally:
        left.set()
        thread.join()
    if isinstance(event, Exception):
        raise event
    yield finished(tokenizer, ids, event[len(ids) :].tolist(), config)


def finished(tokenizer: Any, ids: list[int], new: list[int], config: Any) -> Answer:
    """The whole answer from the new ids, the padding of shorter beams and the end token left out of the count."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    at = next((i for i, token in enumerate(new) if token in ends), None)
    kept = new if at is None else new[:at]
    ending = "length" if at is None else "complete"
    return Answer(text_of(tokenizer, ids, kept), len(kept), ending)


def generate(checkpoint: Checkpoint, ids: list[int], how: Decoding) -> Answer:
    """The finished answer to the prompt ids."""
    *_, answer = stream(checkpoint, ids, how)
    return answer
