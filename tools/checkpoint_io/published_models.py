"""Recognise copies of published repositories by download.py's note or by the MD5 of their files in published.json."""

import hashlib
from pathlib import Path

from hub_download.model_registry import registry
from hub_download.repository_source import NOTE

from checkpoint_io.checkpoint_folders import read_json


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
