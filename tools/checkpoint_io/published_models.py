"""Recognise copies of published repositories (published.json) by records of their origin or the MD5 of their files."""

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hub_download.model_registry import entry_of, registry
from hub_download.repository_source import NOTE

from checkpoint_io.checkpoint_folders import read_json

RECOVER = "tools/weight_diff.py recover"  # "script" in run.json; the argument "published" is the diff's repository
CACHE = re.compile(r"models--([^/]+)--([^/]+)/snapshots/")  # path of a folder in the hub client's cache
REMOTE = re.compile(r"url = \S+?://[^/\s]+/([\w.-]+/[\w.-]+?)(?:\.git)?/?\s")  # in .git/config of a clone


def published_repository(folder: Path, key: str) -> str:
    """Return the published repository that a folder was copied or recovered from; "" if it is unknown.

    A record of the origin (`recorded_repository`) takes precedence. Otherwise the MD5 of the files is compared with the
    registry entries whose field `key` is not empty: with "recovered_md5" if that is `key`, else with "md5". At last, if
    `key` is "template", `_name_or_path` in config.json decides; it identifies only the template, because the model may
    have been tuned after it was loaded by this name.

    Shape and tokenizer do not identify a model: they are the same in LLaMA-13B and all published 13B models.
    """
    if name := recorded_repository(folder):
        return name
    digest = cache(md5)
    for name, entry in registry()["repositories"].items():
        hashes = entry.get("recovered_md5" if key == "recovered_md5" else "md5", {})
        has_all = bool(entry.get(key) and hashes) and all((folder / file).is_file() for file in hashes)
        if has_all and all(digest(folder / file) == value for file, value in hashes.items()):
            return str(name)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    origin = str(config.get("_name_or_path"))
    return origin if key == "template" and entry_of(origin) else ""


def recorded_repository(folder: Path) -> str:
    """Return the repository in download.py's note, the hub client's cache, a clone's .git or `recover`'s run.json.

    Returns "" without such a record. Only a note may name a repository that is not in the registry.
    """
    if (folder / NOTE).is_file():
        return str(read_json(folder / NOTE).get("repository", ""))
    git, run = folder / ".git/config", folder / "run.json"
    found = ""
    if place := CACHE.search(f"{folder.absolute()}/"):
        found = f"{place[1]}/{place[2]}"
    elif git.is_file() and (remote := REMOTE.search(git.read_text(encoding="utf-8", errors="replace"))):
        found = remote[1]
    elif run.is_file() and (record := read_json(run)).get("script") == RECOVER:
        found = str(record.get("arguments", {}).get("published", ""))
    return found if entry_of(found) else ""


def has_config(entry: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Return whether a config.json has the values of a registry entry's "config"; True if the entry has none."""
    return all(config.get(key) == value for key, value in entry.get("config", {}).items())


def md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
