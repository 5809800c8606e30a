"""Choose the chat template for tuning: --prompt_template_name, else the base's own, else alpaca."""

import re
from pathlib import Path
from typing import Any

from chat_prompts.chat_templates import ChatTemplate
from chat_prompts.template_files import folder_template, other_templates, read_template

TEMPLATES = Path(__file__).parent.parent / "templates"
DEFAULT_TEMPLATE = "alpaca"  # for a base without a template
SAME_AS_ALPACA = ("qwen", "chatglm3")  # names of published prompt files that are equal to alpaca
SPECIAL_TOKEN = re.compile(r"<\|[a-z_]+\|>")  # usual spelling of a special token


def load_template(name: str) -> str:
    """Return the Jinja source of a template. name: a name in finetune/templates, or a .jinja or alpaca .json file.

    Raises ValueError, which lists the known names, if there is no such template.
    """
    name = DEFAULT_TEMPLATE if name in SAME_AS_ALPACA else name
    known = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
    path = TEMPLATES / f"{name}.jinja" if name in known else Path(name)
    if not path.is_file():
        raise ValueError(
            f"there is no template {name!r}; take one of {', '.join(known)}, or the path of a .jinja or alpaca .json"
        )
    return read_template(path, "--prompt_template_name")


def choose_template(name: str, tokenizer: Any, base: str, resumed: str | None = None) -> tuple[str, str]:
    """Return (the template for tuning, a description of its origin).

    Args:
        name: --prompt_template_name; "" chooses the base's own template, or alpaca if it has none.
        tokenizer: the tokenizer of the base.
        base: the base's folder.
        resumed: the checkpoint from which the run resumes, if any; its template is used.

    Raises ValueError if a template is not valid Jinja, if a resumed run names another template, or if a template other
    than the base's own writes special tokens that the tokenizer lacks: they would be encoded as ordinary text, which a
    user's message can contain too. Some published models (Zephyr) were trained with such a template of their own; the
    description then names the missing token.
    """
    own = ChatTemplate(tokenizer).source
    before = folder_template(resumed) if resumed else None
    template = load_template(name) if name else before
    if template:
        if before and template != before:
            raise ValueError(
                f"--prompt_template_name {name} is not the template of {resumed}; remove the option to resume"
            )
        origin = f"{resumed}/chat_template.jinja" if before else name
        if name in SAME_AS_ALPACA:
            origin = f"{DEFAULT_TEMPLATE}, which is equal to the published template {name}"
    elif own:
        folder_template(base)  # raises for a syntax error, with file and line
        template, origin = own, f"the base's own, in {base}"
    else:
        template, origin = (
            load_template(DEFAULT_TEMPLATE),
            f"{DEFAULT_TEMPLATE}, since {base} has none{other_templates(base)[0]}",
        )
    missing = set(SPECIAL_TOKEN.findall(template)) - set(tokenizer.get_vocab())
    if missing and template == own:
        origin += f"; it writes {min(missing)} as ordinary text, since the tokenizer has no such special token"
    elif missing:
        raise ValueError(
            f"the template {origin} writes {min(missing)}, which the tokenizer of {base} does not have; give "
            "another template with --prompt_template_name, such as alpaca"
        )
    return template, origin
