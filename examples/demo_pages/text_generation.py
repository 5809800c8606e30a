"""Generate text with a loaded checkpoint, and stream it."""

import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_type_hints

from demo_pages.model_loading import Checkpoint


@dataclass(frozen=True)
class Decoding:
    """Decoding settings; raises ValueError on a value out of range."""

    max_new_tokens: int = 512
    num_beams: int = 1
    repetition_penalty: float = 1.0  # above 1 lowers the logits of tokens that the prompt or answer already has
    do_sample: bool = False  # sample tokens instead of greedy or beam search; required by the settings below
    temperature: float = 0.4  # below 1 sharpens the distribution; 0: greedy
    top_p: float = 0.75  # probability mass of the candidates (nucleus sampling)
    top_k: int = 40  # number of candidates; 0: all
    seed: int | None = None  # seed of the sampling of each answer; None: another seed each time

    def __post_init__(self) -> None:
        ranges = {
            "max_new_tokens": (self.max_new_tokens >= 1, "a whole number of 1 or more"),
            "num_beams": (self.num_beams >= 1, "a whole number of 1 or more"),
            "repetition_penalty": (self.repetition_penalty > 0, "a number above 0; 1 is no penalty"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "a number above 0, at most 1, which keeps all tokens"),
            "top_k": (self.top_k >= 0, "a whole number of 0 (all tokens) or more"),
            "seed": (self.seed is None or 0 <= self.seed < 2**63, f"a whole number from 0 to {2**63 - 1}, or none"),
        }
        for name, (fits, text) in ranges.items():
            if not fits:
                raise ValueError(f"{name}={getattr(self, name)} is out of range; give {text}")


# Values for the published advice (README of github.com/zjunlp/KnowLM, section 1.2), which has no figures.
# precise, "beam search with a moderate num_beam": the values of most published extraction and general cases.
# creative, "sampling with a relatively higher top_k or top_p, and possibly a higher temperature": the sampling settings
# are above the defaults of the published page (0.4, 0.75, 40); the penalty is that of the published creative case.
PRESETS: dict[str, dict[str, Any]] = {
    "precise": {"num_beams": 4, "repetition_penalty": 1.3, "do_sample": False},
    "creative": {
        "num_beams": 1, "repetition_penalty": 1.1, "do_sample": True, "temperature": 0.9, "top_p": 0.95, "top_k": 100,
    },
}  # fmt: skip
SETTINGS: dict[str, Any] = get_type_hints(Decoding)  # name -> type
OPTIONS: dict[str, Any] = {**SETTINGS, "preset": Literal["precise", "creative"]}  # of the commands
MIN_REPEATS, MIN_REPEATED_TOKENS = 3, 24  # lowest numbers at which the end of an answer counts as a repetition


class GeneratedText(NamedTuple):
    """The text generated so far, its number of tokens, and how generation ended."""

    text: str
    new_tokens: int
    # "" during generation, then one of the three endings of the published cases: "complete" (end token), "length"
    # (max_new_tokens or context reached) or "repeating" ("length", and the last tokens repeat one sequence)
    ending: str


def resolve_decoding(suite: Mapping[str, Any], given: Mapping[str, Any]) -> Decoding:
    """Return the decoding settings of a suite of cases, overridden by the user's preset, then by the user's options.

    Raises ValueError if Decoding does not have a name, or if a value has another type or is out of range.
    """
    options = dict(given)
    settings = {**suite, **PRESETS.get(options.pop("preset", ""), {}), **options}
    if unknown := sorted(settings.keys() - SETTINGS.keys()):
        raise ValueError(f"there is no decoding setting {unknown[0]}; the settings are {', '.join(SETTINGS)}")
    return Decoding(**{name: setting_value(name, value) for name, value in settings.items()})


def setting_value(name: str, value: Any) -> Any:
    """Return the value of a setting in the setting's type; raises ValueError if the value has another type."""
    kind = SETTINGS[name]
    if kind is bool and isinstance(value, bool):
        return value
    if name == "seed" and value is None:
        return None
    if kind is not bool and isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
        if kind is float or number.is_integer():
            return number if kind is float else int(value)
    raise ValueError(f"{name} takes {'true or false' if kind is bool else 'a number'}, not {value!r}")


def generation_config(checkpoint: Checkpoint, ids: list[int], decoding: Decoding) -> Any:
    """Return a GenerationConfig whose max_new_tokens fits into the model's context.

    Without do_sample or with temperature 0, the sampling settings are transformers' defaults, so that the checkpoint's
    generation_config.json has no effect on them. Raises ValueError if the prompt is empty or fills the context.
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
    del arguments["seed"]
    if not decoding.do_sample or decoding.temperature == 0:
        arguments |= {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
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
    ends within one token after the caller closes this iterator. Raises the exceptions of `generation_config` and
    model.generate().
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
            if decoding.do_sample and decoding.seed is not None:
                torch.manual_seed(decoding.seed)  # for each answer, so that answers before it have no effect
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
    ending = "complete" if end is not None else "repeating" if repeated_tokens(new) else "length"
    return GeneratedText(decode_new(tokenizer, ids, new[:end]), len(new[:end]), ending)


def repeated_tokens(ids: list[int]) -> int:
    """Return the number of tokens at the end that repeat one sequence.

    It is 0 if there are fewer than MIN_REPEATS repeats or MIN_REPEATED_TOKENS tokens. Repetitions with changes, such as
    a counter, are not found.
    """
    for period in range(1, len(ids) // MIN_REPEATS + 1):
        same = next((at for at in range(len(ids) - period) if ids[-1 - at] != ids[-1 - at - period]), len(ids) - period)
        if same + period >= max(MIN_REPEATS * period, MIN_REPEATED_TOKENS):
            return same + period
    return 0


def generate(checkpoint: Checkpoint, ids: list[int], decoding: Decoding) -> GeneratedText:
    """Return the finished text for the prompt ids."""
    *_, text = stream(checkpoint, ids, decoding)
    return text
