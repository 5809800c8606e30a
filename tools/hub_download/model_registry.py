"""Published models and data sets (published.json) and the prompt templates that the models were tuned on.

Repositories published in 2023 contain no chat template file. With another template than in tuning, a model answers
nonsense. The key `facts` of an entry names the page that states its licence and size; the key `licence` or `size` is
missing if the page does not state it.
"""

import json
from pathlib import Path
from typing import Any

REGISTRY = Path(__file__).parent.parent / "published.json"


def registry() -> dict[str, Any]:
    """Return the content of published.json."""
    content: dict[str, Any] = json.loads(REGISTRY.read_text(encoding="utf-8"))
    return content


def entry_of(repository: str) -> dict[str, Any]:
    """Return the registry's entry of a repository, {} if there is none; the case of names is ignored."""
    entries = registry()["repositories"].items()
    return next((entry for name, entry in entries if name.lower() == repository.lower()), {})


def template_of(repository: str) -> str:
    """Return the Jinja source of the template that a published model was tuned on; "" if it is not known."""
    name = entry_of(repository).get("template", "")
    return registry()["templates"][name] if name else ""
