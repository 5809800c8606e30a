"""The chat template that a model is tuned with: named on the command line, the base's own, or alpaca."""

import re
from pathlib import Path
from typing import Any

from chat_prompts.template_files import folder_template, read_template

TEMPLATES = Path(__file__).parent.parent / "templates"
DEFAULT = "alpaca"  # for a base without a template
MARKER = re.compile(r"<\|[a-z_]+\|>")  # the spelling in which templates write control tokens


def load_template(name: str) -> str:
    """The Jinja source of a template: a name in finetune/templates, or the path of a .jinja or an alpaca .json file.

    Raises ValueError that names the known ones.
    """
    known = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
    path = TEMPLATES / f"{name}.jinja" if name in known else Path(name)
    if not path.is_file():
        raise ValueError(
            f"there is no template {name!r}; take one of {', '.join(known)}, or the path of a .jinja or alpaca .json"
        )
    return read_template(path, "--prompt_template_name")


def choose_template(name: str, tokenizer: Any, base: str, resumed: str | None = None) -> tuple[str, str]:
    """The template to tune with and its origin in words.

    Args:
        name: of --prompt_template_name; "" takes the base's own template, or alpaca where it has none.
        tokenizer: the base's.
        base: the base's folder.
        resumed: the checkpoint that the run continues from; its template may not change.

    Raises ValueError where the template writes control tokens that the tokenizer does not have (anybody could write
    them), and where a resumed run is given another template.
    """
    before = folder_template(resumed) if resumed else None
    chosen = load_template(name) if name else before
    if chosen:
        if before and chosen != before:
            raise ValueError(
                f"--prompt_template_name {name} is not the template of {resumed}; leave it out to continue that run"
            )
        origin = f"{resumed}/chat_template.jinja" if before else name
    elif tokenizer.chat_template:
        own = tokenizer.chat_template
        return (own["default"] if isinstance(own, dict) else own), f"the base's own, in {base}"
    else:
        chosen, origin = load_template(DEFAULT), f"{DEFAULT}, since {base} has none"
    missing = set(MARKER.findall(chosen)) - set(tokenizer.get_vocab())
    if missing:
        raise ValueError(
            f"the template {origin} writes {min(missing)}, which the tokenizer of {base} does not have; take another "
            "one with --prompt_template_name, such as alpaca"
        )
    return chosen, origin
