"""Published models and data sets (published.json) and the prompt templates that the models were tuned on.

Repositories published in 2023 contain no chat template file. With another prompt than its own, a model answers
nonsense. An entry's licence and size are those on the page that its key `facts` names; a missing key is not stated
there.
"""

import json
from pathlib import Path
from typing import Any

REGISTRY = Path(__file__).parent.parent / "published.json"


def registry() -> dict[str, Any]:
    """Return the content of published.json."""
    content: dict[str, Any] = json.loads(REGISTRY.read_text(encoding="utf-8"))
    return content


def facts_of(repository: str) -> dict[str, Any]:
    """Return the registry's entry of a repository, {} if there is none; mirrors differ in upper and lower case."""
    entries = registry()["repositories"].items()
    return next((facts for name, facts in entries if name.lower() == repository.lower()), {})


def template_of(repository: str) -> str:
    """Return the Jinja source of the template that a published model was tuned on; "" if it is not known."""
    name = facts_of(repository).get("template", "")
    return registry()["templates"][name] if name else ""
