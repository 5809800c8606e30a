"""An index of a graph: a folder of arrays and strings that are mapped from disk, so it may exceed memory.

index.json                     version, hashes of the input files, counts, names of relations and types
automaton_*.npy                the automaton of names (name_matching.py)
keys, values                   strings: ids of entities, literals (…_text.npy, …_offsets.npy)
literal_kinds.npy              uint8: entity -> DATE, NUMBER, their sum, or 0
NAME_offsets.npy, NAME.npy     lists of int32, one after another:
    candidates                 name -> entities with this name
    neighbours                 entity -> entities that share a triple with it, ascending
    tails, relations           entity -> tails of its triples, ascending, and their relations (with tails' offsets)
    literals                   entity -> relation, value, relation, value, …
    types                      entity -> types, in the order of the file
"""

import json
from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from literal_values.literal_mentions import literal_keys, literal_text

from graph_linking.name_matching import Array, NameAutomaton

SEAL = "index.json"
VERSION = 1
DATE, NUMBER = 1, 2  # kinds of literals
CACHED = 1 << 16  # names and entities whose values are kept as Python objects


class StringTable:
    """Strings by number, mapped from disk."""

    def __init__(self, folder: Path, name: str) -> None:
        self.offsets = _mapped(folder / f"{name}_offsets.npy").data
        self.content = _mapped(folder / f"{name}_text.npy").data

    def __getitem__(self, number: int) -> str:
        return str(self.content[self.offsets[number] : self.offsets[number + 1]], "utf-8")

    @staticmethod
    def write(folder: Path, name: str, blocks: Iterable[list[str]]) -> int:
        """Write strings, in blocks, and return their number."""
        lengths, parts = [np.zeros(1, np.int64)], []
        for block in blocks:
            encoded = [text.encode() for text in block]
            lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
            parts.append(np.frombuffer(b"".join(encoded), np.uint8))
        offsets = np.cumsum(np.concatenate(lengths))
        np.save(folder / f"{name}_offsets.npy", offsets)
        np.save(folder / f"{name}_text.npy", np.concatenate(parts) if parts else np.zeros(0, np.uint8))
        return len(offsets) - 1


class NumberLists:
    """Lists of numbers, one for each name or entity, mapped from disk.

    Single numbers are read through memoryviews, which takes a fifth of the time of reading them from NumPy arrays.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.array_offsets, self.array = _mapped(folder / f"{name}_offsets.npy"), _mapped(folder / f"{name}.npy")
        self.offsets, self.values = self.array_offsets.data, self.array.data

    def __getitem__(self, number: int) -> list[int]:
        return self.values[self.offsets[number] : self.offsets[number + 1]].tolist()

    def count(self, number: int) -> int:
        """Return the length of a list."""
        return self.offsets[number + 1] - self.offsets[number]

    @staticmethod
    def write(folder: Path, name: str, owners: Array, values: Array, count: int, width: int = 1) -> None:
        """Write the values of each owner; `owners` is ascending. width: number of values per entry of `owners`."""
        offsets = np.searchsorted(owners, np.arange(count + 1)) * width
        np.save(folder / f"{name}_offsets.npy", offsets.astype(np.int64))
        np.save(folder / f"{name}.npy", values.astype(np.int32))


def _mapped(path: Path) -> Array:
    return np.asarray(np.load(path, mmap_mode="r"))


def read_seal(folder: Path) -> dict[str, Any]:
    """Return the content of index.json; {} if the folder has no complete index of this version."""
    try:
        seal: dict[str, Any] = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return seal if isinstance(seal, dict) and seal.get("version") == VERSION else {}


class GraphIndex:
    """The mapped index of a graph; names, entities, relations and types are numbers.

    Raises ValueError if the folder has no complete index.
    """

    def __init__(self, folder: str | Path) -> None:
        path, seal = Path(folder), read_seal(Path(folder))
        if not seal:
            raise ValueError(f"{folder} is not an index; make it: python finetune/kg2instruct.py index --kg … --out …")
        self.seal = seal
        self.relation_names: list[str] = seal["relations"]
        self.type_names: list[str] = seal["types"]
        self.automaton = NameAutomaton.load(path)
        self.keys, self.values = StringTable(path, "keys"), StringTable(path, "values")
        lists = ("candidates", "neighbours", "tails", "literals", "types")
        self._candidates, self._neighbours, self._tails, self._literals, self._types = (
            NumberLists(path, name) for name in lists
        )
        self.literal_kinds = _mapped(path / "literal_kinds.npy").data
        self._single_types = [(name,) for name in self.type_names]
        self._relations = _mapped(path / "relations.npy").data
        self.candidates = lru_cache(CACHED)(self._candidates_of)
        self.literals = lru_cache(CACHED)(self._literals_of)

    def degree(self, entity: int) -> int:
        """Return the number of entities that share a triple with an entity."""
        return self._neighbours.count(entity)

    def are_neighbours(self, first: int, second: int) -> bool:
        """Return whether two entities share a triple."""
        if self.degree(second) < self.degree(first):
            first, second = second, first
        start, end = self._neighbours.offsets[first], self._neighbours.offsets[first + 1]
        at = bisect_left(self._neighbours.values, second, start, end)
        return at < end and self._neighbours.values[at] == second

    def neighbours_among(self, entity: int, others: set[int]) -> int:
        """Return how many of `others` are neighbours of an entity; the time is bounded by their number."""
        if self.degree(entity) <= 8 * len(others):
            return len(others.intersection(self._neighbours[entity]))
        return sum(self.are_neighbours(entity, other) for other in others)

    def triples_among(self, head: int, others: set[int]) -> list[tuple[int, int]]:
        """Return (relation, tail) of the triples of `head` whose tail is one of `others`.

        The time is bounded by the number of `others`, also for a head with millions of triples.
        """
        tails, start, end = self._tails.values, self._tails.offsets[head], self._tails.offsets[head + 1]
        if start == end:
            return []
        if end - start <= 8 * len(others):
            places = [at for at, tail in enumerate(tails[start:end], start) if tail in others]
        else:
            places = []
            for other in others:
                at = bisect_left(tails, other, start, end)
                while at < end and tails[at] == other:
                    places.append(at)
                    at += 1
        return [(self._relations[at], tails[at]) for at in sorted(places)]

    def only_candidates(self, names: list[int]) -> list[int]:
        """Return the entity of each name that only one entity has, -1 for other names."""
        numbers, offsets = np.asarray(names, np.int64), self._candidates.array_offsets
        start, end = offsets[numbers], offsets[numbers + 1]
        entities: list[int] = np.where(end - start == 1, self._candidates.array[start], -1).tolist()
        return entities

    def _candidates_of(self, name: int) -> tuple[int, ...]:
        return tuple(self._candidates[name])

    def types(self, entity: int) -> tuple[str, ...]:
        """Return the types of an entity, in the order of the file."""
        numbers = self._types[entity]
        return self._single_types[numbers[0]] if len(numbers) == 1 else tuple(self.type_names[one] for one in numbers)

    def _literals_of(self, entity: int) -> tuple[tuple[int, str, frozenset[str]], ...]:
        """Return (relation, literal, keys of the literal) of the triples with a literal."""
        numbers = self._literals[entity]
        literals = [(relation, self.values[value]) for relation, value in zip(numbers[::2], numbers[1::2], strict=True)]
        return tuple((relation, literal_text(text), literal_keys(text)) for relation, text in literals)
