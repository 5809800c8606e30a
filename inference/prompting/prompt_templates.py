"""Prompt templates that are given instead of the checkpoint's: Jinja, or the alpaca JSON of older repositories."""

import json
from pathlib import Path
from string import Formatter

# Every turn of a conversation in a layout with or without input; the answers of earlier turns end in EOS.
CONVERSATION = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}{% if message.input %}{{ INPUT }}{% else %}{{ NO_INPUT }}{% endif %}"
    "{% elif message.role == 'assistant' %}{{ message.content + eos_token }}"
    "{% else %}{{ raise_exception('this template has no place for the role ' + message.role) }}{% endif %}"
    "{% endfor %}"
)
FIELDS = {"instruction": "message.content", "input": "message.input"}


def read_template(path: str) -> str:
    """The Jinja source of a template file: its text, or what an alpaca prompt file (.json) means.

    Raises FileNotFoundError and ValueError.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} does not exist; --template_path takes a Jinja file or an alpaca prompt file (.json)"
        )
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it first") from None
    return from_alpaca_file(text, path) if path.endswith(".json") else text


def from_alpaca_file(text: str, path: str) -> str:
    """Jinja source of {"prompt_input": "…{instruction}…{input}…", "prompt_no_input": "…{instruction}…"}.

    The prompts are data: their text becomes string literals of the template, whatever it spells.
    """
    try:
        prompts = json.loads(text)
        layouts = [expression(prompts[name]) for name in ("prompt_input", "prompt_no_input")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        form = '{"prompt_input": "… {instruction} … {input} …", "prompt_no_input": "… {instruction} …"}'
        raise ValueError(f"{path} is no alpaca prompt file ({error!r}); it has the form {form}") from None
    before, _, rest = CONVERSATION.partition("INPUT")
    between, _, behind = rest.partition("NO_INPUT")
    return before + layouts[0] + between + layouts[1] + behind


def expression(prompt: str) -> str:
    """A Jinja expression of a str.format prompt: literals and fields, joined."""
    parts = []
    for literal, field, _, _ in Formatter().parse(prompt):
        if literal:
            parts.append(json.dumps(literal, ensure_ascii=False))
        if field is not None:
            parts.append(FIELDS[field])
    return " + ".join(parts)
