"""Read chat templates from files: Jinja, or the alpaca prompt files (JSON) of older repositories."""

import json
from pathlib import Path
from string import Formatter

from exact_tokenizers.tokenizer_folders import read_object

TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"

# A question is rendered by the prompt with or without input; an answer is followed by EOS.
CONVERSATION = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}{% if message.input %}{{ WITH_INPUT }}{% else %}{{ NO_INPUT }}{% endif %}"
    "{% elif message.role == 'assistant' %}{{ message.content + eos_token }}"
    "{% else %}{{ raise_exception('this template knows the roles user and assistant, not ' + message.role) }}"
    "{% endif %}{% endfor %}"
)
FIELDS = {"instruction": "message.content", "input": "message.input"}


def read_template(path: str | Path, option: str) -> str:
    """Return the Jinja source of a template file: its text, or the translation of an alpaca prompt file (.json).

    option: the command-line option with the file's name, for messages. Raises FileNotFoundError or ValueError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {option} takes a Jinja file or an alpaca prompt file (.json)")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it first") from None
    return from_alpaca(text, path) if path.suffix == ".json" else text


def from_alpaca(text: str, path: str | Path) -> str:
    """Return Jinja source for {"prompt_input": "…{instruction}…{input}…", "prompt_no_input": "…{instruction}…"}.

    The text of the prompts becomes string literals of the template, so template syntax in it has no effect. Raises
    ValueError, which names `path`, if `text` is not JSON of this form.
    """
    try:
        prompts = json.loads(text)
        with_input, without = (_expression(prompts[name]) for name in ("prompt_input", "prompt_no_input"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        form = '{"prompt_input": "… {instruction} … {input} …", "prompt_no_input": "… {instruction} …"}'
        raise ValueError(f"{path} is not an alpaca prompt file ({error!r}); it must have the form {form}") from None
    before, _, rest = CONVERSATION.partition("WITH_INPUT")
    between, _, after = rest.partition("NO_INPUT")
    return before + with_input + between + without + after


def _expression(prompt: str) -> str:
    """Return a Jinja expression for a str.format prompt: its literals and fields, concatenated."""
    parts = []
    for literal, field, _, _ in Formatter().parse(prompt):
        parts += [json.dumps(literal, ensure_ascii=False)] if literal else []
        parts += [FIELDS[field]] if field is not None else []
    return " + ".join(parts) or '""'


def read_templates(folder: str | Path) -> dict[str, str]:
    """Return name -> Jinja source of the chat templates of a checkpoint or adapter folder; the main one is `default`.

    As in transformers, the template files of a folder replace the templates in its tokenizer_config.json.
    """
    named = [(path.stem, path) for path in sorted(Path(folder, TEMPLATES).glob("*.jinja"))]
    files = {name: path for name, path in [("default", Path(folder, TEMPLATE)), *named] if path.is_file()}
    if files:
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    stored = read_object(Path(folder, "tokenizer_config.json")).get("chat_template") or {}
    if isinstance(stored, str):
        return {"default": stored}
    return {entry["name"]: entry["template"] for entry in stored} if isinstance(stored, list) else dict(stored)


def folder_template(*folders: str | Path) -> str | None:
    """Return the main chat template of the first folder that has one; None if none has one. A folder may be ""."""
    found = (read_templates(folder).get("default") for folder in folders if folder)
    return next(filter(None, found), None)


def missing_template(folder: str | Path, option: str) -> str:
    """Return a warning for a checkpoint or adapter folder without a chat template, with the command that adds one.

    option: the option of the calling command that gives a template, for example --template_path FILE.
    """
    command = (
        f", or add it: python tools/set_template.py --model_path {folder} --template_path "
        "finetune/templates/alpaca.jinja --output_dir NEW"
    )
    has_tokenizer = Path(folder, "tokenizer_config.json").is_file()  # which set_template.py renders the template with
    return (
        f"{folder} has no chat template, so instructions are sent as plain text. A tuned model needs the template "
        f"that it was tuned with: {option}{command if has_tokenizer else ''}"
    )
