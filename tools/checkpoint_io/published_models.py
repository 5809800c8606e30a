"""Facts about published models (tools/published.json): prompt template, MD5 of files, sum of all weights as a checksum.

Repositories published in 2023 contain no chat template file. The registry has the prompt template that each model was
tuned with; with another prompt the model answers nonsense.
"""

import hashlib
from pathlib import Path
from typing import Any

from checkpoint_io.checkpoint_folders import read_json

REGISTRY = Path(__file__).parent.parent / "published.json"
NOTE = ".download/note.json"  # written by tools/download.py; contains the folder's repository


def registry() -> dict[str, Any]:
    """Return the content of published.json."""
    return read_json(REGISTRY)


def published_repository(folder: Path, fact: str) -> str:
    """Return the name of the published repository that a folder is a copy of; "" if it is not known.

    The name is that of download.py's note, else that of the repository whose published files the folder has. fact: key
    of an entry; only repositories that have it are compared. Files are hashed only if the folder has all files of a
    list, and then up to the first that differs.
    """
    if (folder / NOTE).is_file():
        return str(read_json(folder / NOTE).get("repository", ""))
    for name, facts in registry()["repositories"].items():
        hashes = facts.get("md5", {})
        has_all = fact in facts and bool(hashes) and all((folder / file).is_file() for file in hashes)
        if has_all and all(md5(folder / file) == value for file, value in hashes.items()):
            return str(name)
    return ""


def md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def template_of(repository: str) -> str:
    """Return the Jinja source of the template that a published model was tuned on; "" if it is not known."""
    known = registry()
    name = known["repositories"].get(repository, {}).get("template", "")
    return known["templates"][name] if name else ""
