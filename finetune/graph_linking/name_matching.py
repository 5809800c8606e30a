"""Find the names of a graph in text: the longest name at each position, with borders that fit the script.

A text is divided into tokens: a run of letters and digits of scripts with spaces (Latin, Cyrillic, …) is one token, any
other character (Han, kana, Hangul, Thai, punctuation, a space) is one. A name begins and ends at token borders, so that
"Ann" is not found in "Annex", but 北京 is found in 在北京工作.

The automaton is a trie over tokens whose edges are a hash table: it maps the hash of each prefix of a name (1, 2, …
tokens) to the number of the name that the prefix spells, or -1. NumPy extends the prefixes at all positions of a text
by one token at a time; nearly all positions are dropped after the first. The arrays are mapped from disk and shared by
processes. With a million names, the probability that a hash matches a wrong name is 10^-13 for each position.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import regex

Array = np.ndarray[Any, Any]

# Scripts without spaces between words, or (Hangul) with suffixes attached to names: a name may end anywhere.
_UNSPACED = "".join(
    rf"\p{{{script}}}" for script in ("Thai", "Lao", "Myanmar", "Khmer", "Han", "Hiragana", "Katakana", "Hangul")
)
_WORD_CHARACTERS = regex.compile(rf"(?V1)[[\p{{Alnum}}\p{{M}}_]--[{_UNSPACED}\u3005-\u3007\u30fc]]+")
CODE_POINTS = 0x110000
LONGEST_NAME = 200  # characters
_LONGEST_TOKEN = 256  # characters whose position in the token influences its hash
_FIRST_BITS = 22  # 4 MiB: first tokens of names, by the upper bits of their hash
_SEED = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # of SplitMix64 (Steele et al. 2014)
BLOCK = 1 << 18  # characters of text that are searched together, so that the arrays fit into the cache


class NameMatches(NamedTuple):
    """Names in a text, by position: starts and ends in characters, and the numbers of the names."""

    starts: list[int]
    ends: list[int]
    names: list[int]


def _mix(values: Array) -> Array:
    """Return well mixed hashes of uint64 values (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * _MULTIPLIERS[0]
    values = (values ^ (values >> np.uint64(27))) * _MULTIPLIERS[1]
    return values ^ (values >> np.uint64(31))


@lru_cache(1)
def word_characters() -> Array:
    """Return, for each code point, whether it is part of words in scripts with spaces: (1114112,) bool."""
    table = np.zeros(CODE_POINTS, bool)
    every = "".join(map(chr, range(0xD800))) + "\0" * 0x800 + "".join(map(chr, range(0xE000, CODE_POINTS)))
    for match in _WORD_CHARACTERS.finditer(every):
        table[match.start() : match.end()] = True
    return table


@lru_cache(1)
def _hash_tables() -> tuple[Array, Array]:
    """Return the hash of each code point, and the odd factor of each position in a token."""
    characters = _mix(np.arange(1, CODE_POINTS + 1, dtype=np.uint64) * _SEED)
    return characters, _mix(np.arange(1, _LONGEST_TOKEN + 1, dtype=np.uint64)) | np.uint64(1)


class Tokenizer:
    """Divides text into tokens and hashes them.

    is_word: from `word_characters`, stored with an index, since another version of Unicode would move borders.
    """

    def __init__(self, is_word: Array) -> None:
        self.is_word = is_word
        self.characters, self.positions = _hash_tables()

    def tokens(self, text: str) -> tuple[Array, Array]:
        """Return the start of each token, then the length of the text: (tokens + 1,); and the hash of each token."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        is_word = self.is_word[codes]
        starts = np.flatnonzero(~(is_word[1:] & is_word[:-1])) + 1
        starts = np.concatenate(([0], starts)) if len(codes) else starts
        borders = np.append(starts, len(codes))
        within = np.arange(len(codes)) - np.repeat(starts, np.diff(borders))
        np.minimum(within, _LONGEST_TOKEN - 1, out=within)
        weighted = self.characters[codes] * self.positions[within]
        hashes = np.add.reduceat(weighted, starts) if len(codes) else np.zeros(0, np.uint64)
        return borders, _mix(hashes)


def _extend(prefixes: Array, tokens: Array) -> Array:
    """Return the hashes of prefixes with one more token; never 0, which marks a free slot."""
    return _mix(prefixes * _SEED + tokens) | np.uint64(1)


class NameAutomaton:
    """The trie of names. keys: hash of the prefix in each slot, 0 if free; names: number of the name, or -1."""

    def __init__(self, keys: Array, names: Array, first: Array, is_word: Array) -> None:
        self.keys, self.names, self.first = keys, names, first
        self.tokenizer = Tokenizer(is_word)
        # Slots are ordered by hash; a prefix is at, or shortly after, the slot that its upper bits give.
        self.shift = np.uint64(64 - (max(len(keys), 2) // 2).bit_length())

    @classmethod
    def load(cls, folder: Path) -> "NameAutomaton":
        """Map the automaton in a folder from disk."""
        return cls(*(np.asarray(np.load(folder / f"automaton_{part}.npy", mmap_mode="r")) for part in cls.parts))

    parts = ("keys", "names", "first", "characters")

    def save(self, folder: Path) -> None:
        """Write the arrays to a folder."""
        arrays = (self.keys, self.names, self.first, self.tokenizer.is_word)
        for part, array in zip(self.parts, arrays, strict=True):
            np.save(folder / f"automaton_{part}.npy", array)

    @classmethod
    def build(cls, blocks: Iterable[Sequence[str]]) -> "NameAutomaton":
        """Return the automaton of names without line ends, in blocks; names are numbered in this order from 0."""
        is_word = word_characters()
        tokenizer = Tokenizer(is_word)
        found: list[tuple[Array, Array]] = []
        first, count = np.zeros(1 << _FIRST_BITS, bool), 0
        for names in filter(None, blocks):
            prefixes, numbers, tokens = _prefixes(tokenizer, names)
            first[tokens >> np.uint64(64 - _FIRST_BITS)] = True
            found.append(_unique_prefixes(prefixes, np.where(numbers >= 0, numbers + count, -1)))
            count += len(names)
        found.append((np.zeros(0, np.uint64), np.zeros(0, np.int64)))
        keys, numbers = _unique_prefixes(*(np.concatenate(part) for part in zip(*found, strict=True)))
        return cls(*_slots(keys, numbers.astype(np.int32)), first, is_word)

    def find(self, text: str) -> NameMatches:
        """Return the names in a text, the leftmost first; of names at one position the longest; none overlap."""
        starts, ends, names = list[int](), list[int](), list[int]()
        for begin, stop in _blocks(text):
            borders, hashes = self.tokenizer.tokens(text[begin:stop])
            first, last, numbers = self._longest(hashes)
            end = -1
            matches = zip((borders[first] + begin).tolist(), (borders[last] + begin).tolist(), numbers, strict=True)
            for start, match_end, number in matches:
                if start >= end:
                    end = match_end
                    starts.append(start)
                    ends.append(end)
                    names.append(number)
        return NameMatches(starts, ends, names)

    def _longest(self, tokens: Array) -> tuple[Array, Array, list[int]]:
        """Return the longest names: their first token, the token after the last one, and their numbers."""
        at = np.flatnonzero(self.first[tokens >> np.uint64(64 - _FIRST_BITS)])
        first, prefixes, end = at, np.full(len(at), _SEED), np.full(len(at), -1)
        number, alive = np.full(len(at), -1), np.arange(len(at))
        while len(at):
            prefixes = _extend(prefixes, tokens[at])
            slots = self._find(prefixes)
            kept = np.flatnonzero(slots >= 0)
            alive, at, prefixes = alive[kept], at[kept] + 1, prefixes[kept]
            names = self.names[slots[kept]]
            ends = np.flatnonzero(names >= 0)
            number[alive[ends]], end[alive[ends]] = names[ends], at[ends]
            inside = np.flatnonzero(at < len(tokens))
            if len(inside) < len(at):
                alive, at, prefixes = alive[inside], at[inside], prefixes[inside]
        matched = np.flatnonzero(end >= 0)
        return first[matched], end[matched], number[matched].tolist()

    def _find(self, prefixes: Array) -> Array:
        """Return the slot of each prefix, -1 if there is none."""
        slots = (prefixes >> self.shift).astype(np.int64)
        found, pending = np.full(len(prefixes), -1), np.arange(len(prefixes))
        while len(pending):
            keys = self.keys[slots]
            equal = keys == prefixes
            found[pending[equal]] = slots[equal]
            more = np.flatnonzero((keys < prefixes) & (keys != 0))
            pending, slots, prefixes = pending[more], slots[more] + 1, prefixes[more]
        return found


def _blocks(text: str) -> list[tuple[int, int]]:
    """Divide a text at line ends into blocks of about BLOCK characters; no name includes a line end."""
    blocks, start = [], 0
    while start < len(text):
        stop = len(text) if len(text) - start <= BLOCK else text.find("\n", start + BLOCK) + 1 or len(text)
        blocks.append((start, stop))
        start = stop
    return blocks


def _prefixes(tokenizer: Tokenizer, names: Sequence[str]) -> tuple[Array, Array, Array]:
    """Return the hashes of all prefixes of names, the number of the name that each spells (or -1), the first tokens."""
    borders, tokens = tokenizer.tokens("\n".join([*names, ""]))
    begins = np.cumsum([0, *(len(name) + 1 for name in names)])
    at = np.searchsorted(borders, begins[:-1])
    stops = np.searchsorted(borders, begins[1:] - 1)
    firsts, number, prefixes = tokens[at], np.arange(len(names)), np.full(len(names), _SEED)
    all_prefixes, all_numbers = [], []
    while len(at):
        prefixes = _extend(prefixes, tokens[at])
        at = at + 1
        is_whole = at == stops
        all_prefixes.append(prefixes)
        all_numbers.append(np.where(is_whole, number, -1))
        at, stops, number, prefixes = at[~is_whole], stops[~is_whole], number[~is_whole], prefixes[~is_whole]
    return np.concatenate(all_prefixes), np.concatenate(all_numbers), firsts


def _unique_prefixes(keys: Array, numbers: Array) -> tuple[Array, Array]:
    """Return each prefix once, ordered, with the number of the name that it spells, or -1."""
    order = np.lexsort((-numbers, keys))
    keys, numbers = keys[order], numbers[order]
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    return keys[is_first], numbers[is_first]


def _slots(keys: Array, numbers: Array) -> tuple[Array, Array]:
    """Return the hash table of ordered, unique prefixes: at most half full, with ordered linear probing."""
    bits = max(1, (2 * len(keys)).bit_length())
    home = (keys >> np.uint64(64 - bits)).astype(np.int64)
    order = np.arange(len(keys))
    place = order + np.maximum.accumulate(home - order) if len(keys) else order
    size = max(1 << bits, int(place[-1]) + 1 if len(keys) else 0) + 1  # the last slot is free
    table, names = np.zeros(size, np.uint64), np.full(size, -1, np.int32)
    table[place], names[place] = keys, numbers
    return table, names
