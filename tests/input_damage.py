"""Damage the inputs of commands: values of JSON files, headers and data of safetensors files, bytes of any file."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from command_options import Command

WRONG_VALUES: list[Any] = [
    None, True, 0, -1, 1, 2.5, 1e30, 10**25, float("nan"), "", "x", "中\n文", "\ud800", [], {}, [None], [[]], {"a": 1},
    "F16", [0, 0], [-1, 4], "../x", "model.safetensors", 2**62, "[" * 3, {"": {"": []}},
]  # fmt: skip
MOST_BYTES = 40  # maximum number of bytes that are changed at once
GGUF_HEADER = 40_000  # bytes; about the size of the header of the tests' models


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside a JSON value."""
    found = [path] if path else []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places(inner, (*path, key))
    return found


def changed_json(value: Any, draw: random.Random) -> Any:
    """Return a JSON value with one part replaced or removed, or with one key renamed."""
    changed = copy.deepcopy(value)
    path = draw.choice(places(changed) or [()])
    if not path:
        return draw.choice(WRONG_VALUES)
    owner = changed
    for key in path[:-1]:
        owner = owner[key]
    kind = draw.random()
    if kind < 0.75:
        owner[path[-1]] = draw.choice(WRONG_VALUES)
    elif kind < 0.9 or isinstance(owner, list):
        del owner[path[-1]]
    else:
        owner[draw.choice(["", "x", "中", "\ud800", "__metadata__"])] = owner.pop(path[-1])
    return changed


def changed_bytes(content: bytes, draw: random.Random) -> bytes:
    """Return content that is cut, overwritten, extended, emptied or has a repeated part."""
    at, count = draw.randint(0, len(content)), draw.randint(1, MOST_BYTES)
    return draw.choice([
        content[:at],
        content[:at] + draw.randbytes(count) + content[at + count :],
        content[:at] + bytes(count) + content[at + count :],
        content + draw.randbytes(count),
        content[:at] + content[max(0, at - count) :],
        b"",
    ])  # fmt: skip


def damaged(path: Path, content: bytes, draw: random.Random) -> bytes:
    """Return damaged content of a file; the suffix of its name determines the kinds of damage."""
    if draw.random() < 0.3:
        return changed_bytes(content, draw)
    if path.suffix == ".safetensors":
        size = int.from_bytes(content[:8], "little")
        header = json.dumps(changed_json(json.loads(content[8 : 8 + size]), draw)).encode()
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header + content[8 + size :]
    if path.suffix == ".json":
        return json.dumps(changed_json(json.loads(content), draw)).encode()
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in content.splitlines()]
        at = draw.randrange(len(rows))
        rows[at] = changed_json(rows[at], draw)
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".gguf":  # only in the header: changed weights are not an error
        return changed_bytes(content[:GGUF_HEADER], draw) + content[GGUF_HEADER:]
    return changed_bytes(content, draw)


def input_files(command: Command, inputs: Path) -> list[Path]:
    """Return the files that a command's arguments name, relative to the folder `inputs`."""
    found = []
    for text in command.arguments.values():
        for name in text.split(","):
            path = inputs / name
            siblings = path.parent.glob(f"{path.name}.*") if path.parent != inputs else ()  # a corpus
            files = path.rglob("*") if path.is_dir() else [path, *siblings]
            found += [file.relative_to(inputs) for file in files if file.is_file()]
    return sorted(set(found))


def damaged_inputs(
    commands: list[Command], inputs: Path, draw: random.Random
) -> Iterator[tuple[Command, list[str], bool, Callable[[Path], None]]]:
    """Yield cases without end: a command, its words, True, and a function that damages a file in a copy of the inputs.

    True means that the run may succeed, since the damaged file may still be valid.
    """
    choices = [(command, files) for command in commands if (files := input_files(command, inputs))]
    while choices:
        command, files = draw.choice(choices)
        file = draw.choice(files)
        content = damaged(file, (inputs / file).read_bytes(), draw)
        words = [command.script, *command.words, *(f"--{name}={value}" for name, value in command.arguments.items())]

        def damage(folder: Path, file: Path = file, content: bytes = content) -> None:
            (folder / file).write_bytes(content)

        yield command, words, True, damage
