"""Read chat templates from files: Jinja, or the alpaca prompt files (JSON) of older repositories."""

import json
from codecs import BOM_UTF8
from pathlib import Path
from string import Formatter
from typing import Any

from exact_tokenizers.tokenizer_folders import read_object, read_text

TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
PROCESSOR_TEMPLATE = "chat_template.json"  # {"chat_template": …} of a processor; AutoTokenizer does not read it
CONFIG = "tokenizer_config.json"
MAXIMUM_FILE_NAME = 255  # bytes; limit of Linux's file systems

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
    """Return the Jinja source of a Jinja file, a chat_template.json or an alpaca prompt file.

    option: the command-line option that names the file, for messages. Raises FileNotFoundError, or ValueError, which
    names the file and the line of a syntax error.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {option} takes a Jinja file or an alpaca prompt file (.json)")
    text = read_text(path)
    if path.suffix == ".json":
        stored = read_object(path).get("chat_template") if path.name == PROCESSOR_TEMPLATE else None
        text = stored if isinstance(stored, str) else from_alpaca(text, path)
    check_syntax(text, path)
    return text


def check_syntax(source: str, place: str | Path) -> None:
    """Raise ValueError, which names `place` and the line, if transformers could not compile a template.

    The environment has the extensions of _cached_compile_jinja_template (chat_template_utils.py, transformers 5.19).
    """
    from jinja2 import Environment, TemplateSyntaxError
    from jinja2.ext import Extension

    class GenerationTag(Extension):
        tags = {"generation"}  # noqa: RUF012 - an attribute of jinja2

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        Environment(extensions=[GenerationTag, "jinja2.ext.loopcontrols"]).compile(source)
    except TemplateSyntaxError as error:
        reason = " ".join(str(error.message).split()).rstrip(".")
        raise ValueError(
            f"{place}, line {error.lineno}: the template is not valid Jinja ({reason}); correct it or download it again"
        ) from None


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


def template_files(folder: str | Path) -> dict[str, Path]:
    """Return name -> path of the chat template files of a folder; the main template is `default`."""
    named = [(path.stem, path) for path in sorted(Path(folder, TEMPLATES).glob("*.jinja"))]
    return {name: path for name, path in [("default", Path(folder, TEMPLATE)), *named] if path.is_file()}


def read_templates(folder: str | Path, named_only: bool = False) -> dict[str, str]:
    """Return name -> Jinja source of the chat templates of a checkpoint or adapter folder; `default` is the main one.

    As in transformers, the template files of a folder replace the templates in its tokenizer_config.json. A byte order
    mark, which transformers would write into the prompt, is removed. named_only: do not return the main template, and
    do not read its file. Raises ValueError, which names the file, if a template cannot be read or its name cannot be a
    file name.
    """
    if files := template_files(folder):
        return {name: read_text(path) for name, path in files.items() if not (named_only and name == "default")}
    stored = read_object(Path(folder, CONFIG)).get("chat_template") or {}
    entries: Any = [{"name": "default", "template": stored}] if isinstance(stored, str) else stored
    if isinstance(entries, dict):
        entries = [{"name": name, "template": text} for name, text in entries.items()]
    is_list = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    found: dict[Any, Any] = {entry.get("name"): entry.get("template") for entry in entries} if is_list else {None: None}
    if not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise ValueError(f"{Path(folder, CONFIG)}: chat_template is neither text nor named templates; correct it")
    for name in found:
        check_name(name, Path(folder, CONFIG))
    return {name: text.removeprefix("\ufeff") for name, text in found.items() if not (named_only and name == "default")}


def check_name(name: str, place: Path) -> None:
    """Raise ValueError, which names `place`, if a template of this name cannot be saved in the folder TEMPLATES.

    It is saved as <name>.jinja; transformers refuses a name that leads out of the folder (save_chat_templates, 5.19).
    """
    file = f"{name}.jinja"
    if not name or Path(file).name != file or not name.isprintable() or len(file.encode()) > MAXIMUM_FILE_NAME:
        raise ValueError(f"{place}: {name[:80]!r} cannot be the file name of a chat template; rename or remove it")


def has_byte_order_mark(folder: str | Path) -> bool:
    """Return whether the main chat template of a folder begins with a byte order mark."""
    file = template_files(folder).get("default")
    stored = read_object(Path(folder, CONFIG)).get("chat_template")
    return file.read_bytes().startswith(BOM_UTF8) if file else isinstance(stored, str) and stored.startswith("\ufeff")


def checked_templates(folder: str | Path) -> dict[str, str]:
    """Return the templates of `read_templates`; raises ValueError, with file and line, if one is not valid Jinja."""
    templates, files = read_templates(folder), template_files(folder)
    for name, source in templates.items():
        check_syntax(source, files.get(name) or f"{Path(folder, CONFIG)}, chat_template {name!r}")
    return templates


def folder_template(*folders: str | Path) -> str | None:
    """Return the main chat template of the first folder that has one; None if no folder has one. A folder may be "".

    Raises ValueError, with file and line, if a template of this folder, or of a folder before it, cannot be read or is
    not valid Jinja.
    """
    found = (checked_templates(folder).get("default") for folder in folders if folder)
    return next(filter(None, found), None)


def other_templates(folder: str | Path) -> tuple[str, Path | None]:
    """Return (phrase that names the templates of a folder without a main template, file of one of them or None).

    ("", None) if the folder has no template.
    """
    named, files = read_templates(folder), template_files(folder)
    if named:
        names, place = " and ".join(sorted(named)), f" in {CONFIG}" * (not files)
        return f", only the named template{'s' * (len(named) != 1)} {names}{place}", files.get(min(named))
    file = Path(folder, PROCESSOR_TEMPLATE)
    return (f", only {PROCESSOR_TEMPLATE}, which transformers does not read", file) if file.is_file() else ("", None)


def missing_template(folder: str | Path, option: str) -> str:
    """Return a warning for a checkpoint or adapter folder without a main chat template, with the command that adds one.

    option: the option of the calling command that gives a template, for example --template_path FILE.
    """
    others, file = other_templates(folder)
    option = f"{option.split()[0]} {file}" if file else option
    command = (
        f", or add it: python tools/set_template.py --model_path {folder} --template_path "
        f"{file or 'finetune/templates/alpaca.jinja'} --output_dir NEW"
    )
    has_tokenizer = Path(folder, CONFIG).is_file()  # set_template.py needs the tokenizer to render the template
    return (
        f"{folder} has no chat template{others}, so instructions are sent as plain text. A tuned model needs the "
        f"template that it was tuned with: {option}{command if has_tokenizer else ''}"
    )
