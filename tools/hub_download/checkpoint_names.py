"""Resolve the name of a checkpoint: a local folder, or a repository of a hub, downloaded once into a cache."""

import os
import re
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from hub_download.hub_files import notice
from hub_download.hub_listing import list_files
from hub_download.repository_download import download, read_note
from hub_download.repository_source import RepositorySource, resolve_endpoint

HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
SAFETENSORS = {"model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"}
# The same weights in other formats, which are not downloaded beside safetensors; "consolidated" is Mistral's layout.
OTHER_FORMATS = (
    "*.bin", "*.bin.index.json", "*.pth", "*.pt", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "consolidated*.safetensors",
    "consolidated.safetensors.index.json",
)  # fmt: skip


def checkpoint_folder(name: str, option: str) -> Path:
    """Return the folder `name`, or the cached folder of the repository OWNER/NAME or OWNER/NAME@REVISION.

    A repository is downloaded to XDG_CACHE_HOME/knowlm/models/OWNER--NAME[@REVISION] if it is not there; otherwise the
    hub is not contacted. A name whose OWNER is an existing folder is a path. option: the command-line option that has
    the name, for messages. Raises FileNotFoundError if the name is not of these forms, ValueError if the download
    fails.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    match = HUB_NAME.fullmatch(name)
    if not match or Path(match[1]).parent.exists():
        raise FileNotFoundError(
            f"{name} is not a folder; {option} takes a folder, or OWNER/NAME or OWNER/NAME@REVISION of the hub"
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "knowlm/models").expanduser()
    target = cache / name.replace("/", "--")
    if target.is_dir():
        commit = (read_note(target) or {}).get("commit", "unknown")[:10]
        notice(f"{name} is read from {target} (commit {commit}); remove that folder to download {name} again")
        return target
    try:
        source = RepositorySource(match[1], revision=match[2] or "", endpoint=resolve_endpoint(""))
        _, files = list_files(source)
        if SAFETENSORS & {file.name for file in files}:
            source = replace(source, exclude=OTHER_FORMATS)
        notice(f"{name} is not a folder; downloading it from {source.endpoint} to {target}")
        with redirect_stdout(sys.stderr):  # stdout is for the command's own output
            print(download(source, target))
    except ValueError as error:
        raise ValueError(f"{name} is not a folder, and {error}") from error
    return target
