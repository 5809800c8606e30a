"""documents.py, compressed_files.py: damaged archives, parquet files and byte order marks; read = kept + dropped."""

import gzip
import json
import random
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from corpora import texts_of
from corpus_building.corpus_build import build_corpus
from corpus_building.samples import CorpusSettings
from corpus_files.corpus import Corpus, dropped_records
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

ROWS = [
    b"no json" if number % 41 == 7 else b"" if number % 50 == 9
    else json.dumps({"text": f"{number} {random.Random(number).randbytes(60).hex()}"}).encode()
    for number in range(3000)
]  # fmt: skip
FRAMES = [b"".join(row + b"\n" for row in ROWS[at : at + 100]) for at in range(0, len(ROWS), 100)]
ARCHIVES = {
    "gz": [gzip.compress(b"".join(FRAMES), 1)],
    "zst": [pyarrow.Codec("zstd").compress(frame).to_pybytes() for frame in FRAMES],
}


def lines_before_damage(ending: str, archive: bytes) -> list[bytes]:
    """Return the complete lines before the damage: for gz, those zlib decompresses; for zst, the unchanged frames."""
    if ending == "zst":
        at = 0
        for number, frame in enumerate(ARCHIVES["zst"]):
            if archive[at : at + len(frame)] != frame:
                return ROWS[: 100 * number]
            at += len(frame)
        return ROWS
    decompressor, content = zlib.decompressobj(31), []
    with suppress(zlib.error):
        for at in range(len(archive)):
            content.append(decompressor.decompress(archive[at : at + 1]))
    return b"".join(content).split(b"\n")[:-1]


@pytest.mark.integration
@settings(max_examples=12, deadline=None)
@given(st.sampled_from(["gz", "zst"]), st.floats(0, 1), st.sampled_from(["cut", "overwritten", "extended"]))
def test_read_documents_of_a_damaged_archive_are_kept_or_dropped(
    tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory, ending: str, place: float, damage: str
) -> None:
    """All lines before the damage are kept or dropped, and the rest of the file is dropped as one line."""
    whole, folder = b"".join(ARCHIVES[ending]), tmp_path_factory.mktemp("damaged")
    at = int(place * (len(whole) - 1))
    overwritten = whole[:at] + bytes(255 - byte for byte in whole[at : at + 40]) + whole[at + 40 :]
    archive = {"cut": whole[:at], "overwritten": overwritten, "extended": whole + b"no archive"}[damage]
    path = folder / f"a.jsonl.{ending}"
    path.write_bytes(archive)
    lines = lines_before_damage(ending, archive)
    try:
        build_corpus([str(path)], str(folder / "out"), str(tiny_tokenizer), CorpusSettings(on_error="skip"))
    except ValueError as error:  # no document is before the damage
        assert "no document to write" in str(error) and len(lines) < 2
        return
    corpus, dropped = Corpus(folder / "out"), list(dropped_records(folder / "out"))
    read = corpus.sidecar["documents"] + len(dropped)
    damages = [record for record in dropped if "the file is damaged" in record["reason"]]
    if damage != "overwritten":  # an overwritten archive may also give changed text
        known = [json.loads(line)["text"] for line in lines if line.startswith(b"{")]
        assert texts_of(folder / "out", tiny_tokenizer)[: len(known)] == known
        assert [record["line"] for record in damages] in ([read], [])
    if ending == "gz":
        assert read == len(lines) + 1 and len(damages) == 1
    else:  # complete blocks of the damaged frame may give more lines
        assert 0 <= read - len(lines) - len(damages) < 100 or damage == "overwritten"


def test_parquet_rows_before_a_damaged_page_are_kept_except_a_row_that_is_not_utf8(
    tmp_path: Path, tiny_tokenizer: Path
) -> None:
    """A row that is not UTF-8 is dropped; a damaged page ends the file, so its rows and all later rows are dropped."""
    table = pyarrow.table({"text": [f"row {number} " + "x" * 50 for number in range(1000)]})
    path, kept = tmp_path / "a.parquet", table["text"].to_pylist()
    options: dict[str, Any] = {"data_page_size": 1000, "write_batch_size": 10, "use_dictionary": False}
    parquet.write_table(table, path, compression="none", write_statistics=False, **options)
    content = bytearray(path.read_bytes())
    at = content.index(b"row 400 ")
    content[at + 20 : at + 30] = b"\xff" * 10
    for is_page_damaged, expected, line, reason in (
        (False, kept[:400] + kept[401:], 401, "is not UTF-8"),
        (True, kept[:400] + kept[401:700], 701, "is damaged"),
    ):
        if is_page_damaged:  # the header of the page that begins with row 700
            at = content.index(b"row 700 ")
            content[at - 16 : at - 4] = b"\xff" * 12
        path.write_bytes(content)
        prefix = tmp_path / f"until{line}"
        build_corpus([str(path)], str(prefix), str(tiny_tokenizer), CorpusSettings(on_error="skip"))
        dropped = list(dropped_records(prefix))
        assert texts_of(prefix, tiny_tokenizer) == expected
        assert dropped[-1]["line"] == line and reason in dropped[-1]["reason"]


def test_file_with_two_paths_in_capitals_and_with_byte_order_marks_is_read_once(
    tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was joined from several files also has byte order marks in later lines."""
    monkeypatch.chdir(tmp_path)
    row = b'\xef\xbb\xbf{"id": 1, "text": "one"}\n'
    Path("A.JSONL").write_bytes(row + row.replace(b"one", b"two"))
    Path("B.TXT.GZ").write_bytes(gzip.compress(b"\xef\xbb\xbfthree\n"))
    Path("link.jsonl").symlink_to("A.JSONL")
    build_corpus(["A.JSONL", "./A.JSONL", "*.TXT.GZ", "link.jsonl"], "out", str(tiny_tokenizer))
    assert texts_of(Path("out"), tiny_tokenizer) == ["one", "two", "three"]
    assert list(Corpus("out").sidecar["settings"]["files"]) == ["A.JSONL", "B.TXT.GZ"]
