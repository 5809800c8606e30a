"""Find the files of --data_path and give them the names that --mix and the log use."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from json_rows.row_files import is_row_file, list_files


class Source(NamedTuple):
    """A file of instruction rows and its name."""

    name: str
    path: Path


def find_sources(data_path: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Return (the files of --data_path, skipped paths in its folders).

    data_path: files or folders, each optionally as name=path; one string may contain several, separated by commas. The
    default name of a file is its stem. Raises FileNotFoundError or ValueError.
    """
    words = [part for word in data_path for part in ([word] if Path(word).exists() else word.split(",")) if part]
    sources: list[Source] = []
    skipped: list[str] = []
    for word in words:
        name, equals, path = ("", "", word) if Path(word).exists() else word.partition("=")
        place = Path(path if equals else word)
        files = list_files(place)
        if place.is_dir():
            skipped += [str(file) for file in sorted(place.iterdir()) if not is_row_file(file)]
            sources += [Source(f"{name}-{file.stem}" if name else file.stem, file) for file in files]
        else:
            sources.append(Source(name if equals else place.stem, place))
    names = [source.name for source in sources]
    twice = next((source for source in sources if names.count(source.name) > 1), None)
    if twice:
        raise ValueError(f"two sources are called {twice.name}; name them: --data_path first={twice.path},second=…")
    return sources, skipped
