"""Build the index of a graph: collect its files in an SQLite database, number everything, and write the arrays.

The strings are never in memory together; the numbers are: 12 bytes for each triple, 16 for each prefix of a name.
"""

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from literal_values.literal_mentions import is_date, literal_keys, literal_text
from partial_folders.cache_entries import ensure_cache_entry
from partial_folders.output_paths import check_place
from tqdm import tqdm

from graph_linking.graph_files import read_columns, read_triples
from graph_linking.graph_index import DATE, NUMBER, SEAL, VERSION, NumberLists, StringTable, read_seal
from graph_linking.name_matching import LONGEST_NAME, Array, NameAutomaton

ROWS = 50_000  # rows that are read from the database at a time
# A name that is one of these words would be found in nearly every text.
_FUNCTION_WORDS = (
    "a about after all also an and any are as at be been before being both but by can could did do does done down "
    "each every few for from had has have he her here him his how i if in into is it its just many may me might more "
    "most much must my no not now of off on one only or other our out over own same shall she should so some such "
    "than that the their them then there these they this those through to too under until up upon us very was we were "
    "what when where which while who whom whose why will with would yes you your"
)
_SKIPPED = frozenset(_FUNCTION_WORDS.split())
_LETTER = re.compile(r"[^\W\d_]")
_SCHEMA = """
    PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -100000;
    CREATE TABLE entity (number INTEGER PRIMARY KEY, key TEXT UNIQUE);
    CREATE TABLE relation (number INTEGER PRIMARY KEY, key TEXT UNIQUE);
    CREATE TABLE type (number INTEGER PRIMARY KEY, key TEXT UNIQUE);
    CREATE TABLE name (number INTEGER PRIMARY KEY, key TEXT UNIQUE);
    CREATE TABLE value (number INTEGER PRIMARY KEY, key TEXT UNIQUE);
    CREATE TABLE triple (head TEXT, relation TEXT, tail TEXT);
    CREATE TABLE naming (entity TEXT, name TEXT);
    CREATE TABLE typing (entity TEXT, type TEXT);
"""


def is_usable_name(name: str) -> bool:
    """Return whether a name is searched for: two characters or more, with a letter, and not a function word.

    Function words in capital letters are names (US, IT).
    """
    is_word = name.lower() in _SKIPPED and not name.isupper()
    return 2 <= len(name) <= LONGEST_NAME and bool(_LETTER.search(name)) and not is_word


def input_hashes(kg: str, aliases: str, types: str) -> dict[str, str]:
    """Return option -> SHA-256 of its file; raises FileNotFoundError if a file does not exist."""
    hashes = {}
    for option, path in (("kg", kg), ("aliases", aliases), ("types", types)):
        if path and not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist; --{option} takes a file of tab-separated columns")
        if path:
            with Path(path).open("rb") as file:
                hashes[option] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def build_index(kg: str, out: str, aliases: str = "", types: str = "") -> tuple[dict[str, Any], bool]:
    """Build the index in the folder `out` unless it has the index of these files.

    Returns the content of index.json, and whether the index was there already. Raises ValueError with file and line for
    a line that is not a triple, an alias or a type, and if `out` is a folder with other files.
    """
    target, hashes = Path(out), input_hashes(kg, aliases, types)
    check_place(target, out)
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / SEAL).is_file()):
        raise ValueError(f"{out} exists and is not an index; name another folder")

    def is_current(path: Path) -> bool:
        return read_seal(path).get("inputs") == hashes

    if is_current(target):
        return read_seal(target), True
    ensure_cache_entry(target, lambda folder: _write_index(folder, kg, aliases, types, hashes), is_current)
    return read_seal(target), False


def _write_index(folder: Path, kg: str, aliases: str, types: str, hashes: dict[str, str]) -> None:
    folder.mkdir()
    database = folder / "staging.sqlite"
    connection = sqlite3.connect(database)
    try:
        connection.executescript(_SCHEMA)
        skipped = _collect(connection, kg, aliases, types)
        counts = _write_arrays(connection, folder)
        relations, kinds = (
            [key for (key,) in connection.execute(f"SELECT key FROM {table} ORDER BY number")]
            for table in ("relation", "type")
        )
    except sqlite3.OperationalError as error:
        raise ValueError(f"{folder.parent} cannot be written ({error}); make room or write elsewhere") from None
    finally:
        connection.close()
    database.unlink()
    seal = {
        "version": VERSION, "inputs": hashes, "counts": counts | {"skipped names": skipped}, "relations": relations,
        "types": kinds,
    }  # fmt: skip
    (folder / SEAL).write_text(json.dumps(seal, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _collect(connection: sqlite3.Connection, kg: str, aliases: str, types: str) -> int:
    """Read the files into the database, and number entities, names and so on; return how many names were skipped."""
    execute = connection.execute

    def insert(table: str, columns: int, rows: Iterable[tuple[str, ...]], description: str) -> None:
        marks = ", ".join("?" * columns)
        bar = tqdm(rows, description, unit=" lines", unit_scale=True, disable=None, leave=False)
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", bar)

    namings = list[tuple[str, str]]()

    def triples() -> Iterator[tuple[str, ...]]:
        for triple in read_triples(kg):
            if triple.head_name:
                namings.append((triple.head, triple.head_name))
            if triple.tail_name:
                namings.append((triple.tail, triple.tail_name))
            if len(namings) > ROWS:
                connection.executemany("INSERT INTO naming VALUES (?, ?)", namings)
                namings.clear()
            yield triple.head, triple.relation, triple.tail

    insert("triple", 3, triples(), "triples")
    connection.executemany("INSERT INTO naming VALUES (?, ?)", namings)
    if aliases:
        lines = read_columns(aliases, (2, 3), "id, name [, language]")
        insert("naming", 2, ((fields[0], fields[1]) for fields in lines), "aliases")
    if types:
        lines = read_columns(types, (2,), "id, type")
        insert("typing", 2, ((fields[0], fields[1]) for fields in lines), "types")
    for table, column in (("triple", "head"), ("naming", "entity"), ("typing", "entity")):
        execute(f"INSERT OR IGNORE INTO entity (key) SELECT {column} FROM {table}")
    connection.create_function("is_literal", 1, lambda text: bool(literal_keys(text)), deterministic=True)
    unknown = "(SELECT DISTINCT tail FROM triple WHERE tail NOT IN (SELECT key FROM entity))"
    execute(f"INSERT INTO value (key) SELECT tail FROM {unknown} WHERE is_literal(tail)")
    execute(f"INSERT INTO entity (key) SELECT tail FROM {unknown} WHERE NOT is_literal(tail)")
    execute("CREATE INDEX named ON naming (entity)")
    connection.create_function("literal_text", 1, literal_text, deterministic=True)
    execute(
        "INSERT INTO naming SELECT key, literal_text(key) FROM entity "
        "WHERE NOT EXISTS (SELECT 1 FROM naming WHERE entity = key)"
    )
    connection.create_function("is_usable", 1, is_usable_name, deterministic=True)
    execute("INSERT OR IGNORE INTO name (key) SELECT name FROM naming WHERE is_usable(name)")
    execute("INSERT OR IGNORE INTO relation (key) SELECT relation FROM triple")
    execute("INSERT OR IGNORE INTO type (key) SELECT type FROM typing")
    row = execute("SELECT count(DISTINCT name) FROM naming WHERE NOT is_usable(name)").fetchone()
    return int(row[0])


def _numbers(connection: sqlite3.Connection, query: str, columns: int) -> Array:
    """Return the rows of a query for numbers, less 1 since SQLite numbers rows from 1: (rows, columns) int32."""
    cursor, parts = connection.execute(query), [np.zeros((0, columns), np.int32)]
    while rows := cursor.fetchmany(ROWS):
        parts.append(np.asarray(rows, np.int32) - 1)
    return np.concatenate(parts)


def _strings(connection: sqlite3.Connection, table: str) -> Iterator[list[str]]:
    """Yield the strings of a table in the order of their numbers, in blocks."""
    cursor = connection.execute(f"SELECT key FROM {table} ORDER BY number")
    while rows := cursor.fetchmany(ROWS):
        yield [key for (key,) in rows]


def _unique_rows(rows: Array, order: tuple[int, ...]) -> Array:
    """Return the distinct rows, sorted by the columns in `order`, the most significant last."""
    rows = rows[np.lexsort([rows[:, column] for column in order])]
    return rows[np.append(True, (rows[1:] != rows[:-1]).any(1))] if len(rows) else rows


def _literal_kinds(connection: sqlite3.Connection) -> Array:
    """Return for each literal DATE, NUMBER or their sum (a bare year): (literals,) uint8."""
    kinds = [0]
    for block in _strings(connection, "value"):
        for keys in map(literal_keys, block):
            is_number = any(key.startswith("n ") for key in keys)
            kinds.append(DATE * is_date(keys) + NUMBER * is_number)
    return np.asarray(kinds[1:] or [0], np.uint8)


def _write_arrays(connection: sqlite3.Connection, folder: Path) -> dict[str, int]:
    """Write the arrays of an index from the filled database; return the counts."""
    with tqdm(total=5, desc="index", disable=None, leave=False) as bar:
        entities = StringTable.write(folder, "keys", _strings(connection, "entity"))
        names = int(connection.execute("SELECT count(*) FROM name").fetchone()[0])
        StringTable.write(folder, "values", _strings(connection, "value"))
        bar.update()
        NameAutomaton.build(_strings(connection, "name")).save(folder)
        bar.update()
        join = "SELECT h.number, r.number, t.number FROM triple JOIN entity h ON h.key = triple.head"
        join += " JOIN relation r ON r.key = triple.relation JOIN {} t ON t.key = triple.tail"
        edges = _unique_rows(_numbers(connection, join.format("entity"), 3), (1, 2, 0))
        NumberLists.write(folder, "tails", edges[:, 0], edges[:, 2], entities)
        np.save(folder / "relations.npy", edges[:, 1])
        both = np.concatenate([edges[:, [0, 2]], edges[:, [2, 0]]])
        both = _unique_rows(both[both[:, 0] != both[:, 1]], (1, 0))
        NumberLists.write(folder, "neighbours", both[:, 0], both[:, 1], entities)
        bar.update()
        literals = _unique_rows(_numbers(connection, join.format("value"), 3), (2, 1, 0))
        NumberLists.write(folder, "literals", literals[:, 0], literals[:, 1:].ravel(), entities, 2)
        kinds = np.zeros(entities, np.uint8)
        np.bitwise_or.at(kinds, literals[:, 0], _literal_kinds(connection)[literals[:, 2]])
        np.save(folder / "literal_kinds.npy", kinds)
        bar.update()
        join = "SELECT n.number, e.number FROM naming JOIN name n ON n.key = naming.name"
        candidates = _numbers(connection, join + " JOIN entity e ON e.key = naming.entity", 2)
        candidates = _unique_rows(candidates, (1, 0))
        NumberLists.write(folder, "candidates", candidates[:, 0], candidates[:, 1], names)
        join = "SELECT e.number, t.number FROM typing JOIN entity e ON e.key = typing.entity"
        types = _numbers(connection, join + " JOIN type t ON t.key = typing.type ORDER BY typing.rowid", 2)
        types = types[np.argsort(types[:, 0], kind="stable")]
        NumberLists.write(folder, "types", types[:, 0], types[:, 1], entities)
        bar.update()
    return {
        "entities": entities, "names": names, "triples": len(edges), "triples with a literal": len(literals),
        "ambiguous names": int((np.diff(np.load(folder / "candidates_offsets.npy")) > 1).sum()),
    }  # fmt: skip
