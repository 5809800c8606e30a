"""row_files.py: every kind of file read alike, row by row, folders and names, errors with their place."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from instruction_data import row_files
from instruction_data.row_files import Source, find_sources, iterate_rows, read_rows


def test_json_and_jsonl_are_read_alike(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "input": "", "output": "b", "source": "x"}, {"instruction": "c\u2028", "output": "d"}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    lines = "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines + "\n", encoding="utf-8")
    assert read_rows(tmp_path / "a.json") == read_rows(tmp_path / "a.jsonl") == rows


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"instruction": "a", "output": "b"}\n{"x": 1}\n', r"f:2: no text under 'instruction' \(keys: x\)"),
        ('{"instruction": "a", "input": "b"}\n', "f:1: no text under 'output'"),
        ('{"instruction": "a", "output": {"person": []}}\n', "f:1: no text under 'output'"),
        ('{"instruction": "a", "input": 3, "output": "b"}\n', "f:1: input is not text"),
        ('[{"instruction": "a", "output": "b"}, 7]', "f, row 2: not a JSON object"),
        ('{"instruction": "a", \n', "f:1 is not JSON"),
        ('[{"instruction": "a", "output": "b"},\n]', "f, row 2 is not JSON"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no message has the role assistant"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "does not begin with a question"),
        ('{"messages": [{"role": "user"}]}', "lacks a textual role or content"),
        ("\n \n", "holds no rows"),
        ("[]", "holds no rows"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_what_is_wrong_with_a_row_is_named_with_its_place(tmp_path: Path, content: str | bytes, said: str) -> None:
    (tmp_path / "f").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=said):
        read_rows(tmp_path / "f")
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        read_rows(tmp_path / "gone")


def test_questions_alone_are_enough_to_ask(tmp_path: Path) -> None:
    (tmp_path / "f").write_text('{"instruction": "a"}\n{"messages": [{"role": "user", "content": "b"}]}\n')
    assert len(read_rows(tmp_path / "f", answers=False)) == 2


def test_parquet_is_read_like_json(tmp_path: Path) -> None:
    rows = [
        {"instruction": "a", "input": None, "output": "b", "messages": None},
        {"instruction": None, "input": None, "output": None,
         "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "山"}]},
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet") == rows
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"broken\.parquet cannot be read as parquet"):
        read_rows(tmp_path / "broken.parquet")


def test_a_list_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that no piece holds whole, and with brackets, quotes and characters of several bytes at the cuts."""
    rows = [{"instruction": '"[{山}],' * n, "output": "\\" * n} for n in range(1, 40)]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    for size in (1, 7, 100):
        monkeypatch.setattr(row_files, "BLOCK", size)
        assert list(iterate_rows(tmp_path / "rows.json")) == rows
    for broken, said in (("[{}", "before row 2"), ('[{"a": 1 ', "row 1 is not JSON"), ("[{} {}]", "before row 2")):
        (tmp_path / "broken.json").write_text(broken)
        with pytest.raises(ValueError, match=said):
            list(row_files._list_items(tmp_path / "broken.json"))


def test_sources_are_files_folders_and_names(tmp_path: Path) -> None:
    for name in ("zh.jsonl", "en.json", "more.parquet", "notes.txt", "extraction.json"):
        (tmp_path / name).write_text("x")
    (tmp_path / "sub").mkdir()
    found, skipped = find_sources([str(tmp_path)])
    assert [source.name for source in found] == ["en", "more", "zh"]
    assert [Path(path).name for path in skipped] == ["extraction.json", "notes.txt", "sub"]
    zh, en = tmp_path / "zh.jsonl", tmp_path / "en.json"
    assert find_sources([f"{zh},{en}"])[0] == [Source("zh", zh), Source("en", en)]
    assert find_sources([f"a={zh}", f"b={zh}"])[0] == [Source("a", zh), Source("b", zh)]
    with pytest.raises(ValueError, match="two sources are called zh; name them"):
        find_sources([str(zh), str(zh)])
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        find_sources([str(tmp_path / "gone")])
    with pytest.raises(FileNotFoundError, match=r"holds no \.json"):
        find_sources([str(tmp_path / "sub")])
