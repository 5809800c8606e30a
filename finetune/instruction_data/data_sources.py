"""Find the files of --data_path and give them the names that --mix and the log use."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from json_rows.row_files import list_files


class Source(NamedTuple):
    """A file of instruction rows and its name."""

    name: str
    path: Path


def find_sources(data_path: Sequence[str]) -> list[Source]:
    """Return the files of --data_path.

    data_path: files or folders, each optionally as name=path; one string may contain several, separated by commas. The
    default name of a file is its stem, and name-stem in a folder given as name=folder. Raises FileNotFoundError if a
    file is missing, or ValueError if two sources have the same name.
    """
    words = [part for word in data_path for part in ([word] if Path(word).exists() else word.split(",")) if part]
    sources: list[Source] = []
    for word in words:
        name, equals, path = ("", "", word) if Path(word).exists() else word.partition("=")
        given = Path(path if equals else word)
        for file in list_files(given):
            stem = f"{name}-{file.stem}" if name else file.stem
            sources.append(Source(name if equals and file == given else stem, file))
    names = [source.name for source in sources]
    duplicate = next((source for source in sources if names.count(source.name) > 1), None)
    if duplicate:
        raise ValueError(
            f"two sources are called {duplicate.name}; name them: --data_path first={duplicate.path},second=…"
        )
    return sources
