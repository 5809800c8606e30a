"""The twin package json_rows: accepted and refused files, with the same messages in every stage that reads rows."""

import gzip
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ie_run
import pyarrow
import pyarrow.parquet
import pytest
from batch_runs import batch_rows
from extraction_metrics.scored_files import scored_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_data.data_sources import Source, find_sources
from json_rows import json_stream
from json_rows.instruction_rows import iterate_instructions, messages_of, prompt_messages, row_error
from json_rows.row_files import iterate_objects, iterate_rows, iterate_texts, read_json
from quantization.quantization_inputs import sample_rows

A = {"instruction": "a", "output": '{"山": []}'}
B = {"instruction": "b", "input": "😀", "output": "{}"}


def text(*rows: object, **options: Any) -> str:
    return "".join(json.dumps(row, **options) + "\n" for row in rows)


def zstd(data: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(data).to_pybytes()


READ: dict[str, str | bytes] = {
    "jsonl": text(A, B),
    "without_escapes": text(A, B, ensure_ascii=False),
    "blank_lines": "\n" + text(A) + "\r\n \t\n" + text(B).rstrip(),
    "list": text([A, B]),
    "list_over_lines": " \n" + text([A, B], indent=2),
    "several_lists": text([A], [], [B]),
    "lists_on_one_line": json.dumps([A]) + " " + json.dumps([B]),
    "objects_over_lines": text(A, B, indent=1),
    "objects_side_by_side": json.dumps(A) + json.dumps(B),
    "object_then_list": text(A, [B]),
    "byte_order_mark": b"\xef\xbb\xbf" + text(A, B).encode(),
    "joined_files_with_byte_order_marks": text([A]).encode("utf-8-sig") + text([B], indent=1).encode("utf-8-sig"),
    "joined_utf16_files": text(A).encode("utf-16") + text(B).encode("utf-16"),
    "utf16": text(A, B, ensure_ascii=False).encode("utf-16"),
    "utf16_big_endian": b"\xfe\xff" + text([A, B], ensure_ascii=False).encode("utf-16-be"),
    "equal_keys": '{"instruction": "no", ' + text(A)[1:] + text(B),
    "gz": gzip.compress(text(A).encode()) + gzip.compress(text([B]).encode()),
    "zst": zstd(text(A).encode()) + zstd(text([B]).encode()),
}


@pytest.mark.parametrize("block", [5, 64, 1 << 20])
@pytest.mark.parametrize("name", READ)
def test_rows_are_read_in_every_format_and_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int
) -> None:
    monkeypatch.setattr(json_stream, "BLOCK_CHARACTERS", block)
    content = READ[name]
    path = tmp_path / (f"x.jsonl.{name}" if name in ("gz", "zst") else "x.json")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert [row for _, row in iterate_objects(path)] == [A, B]


PREDICTED = A | {"prediction": "p"}  # a row for ie_eval.py; the other commands read it as an instruction row
JSONL, LIST = text(PREDICTED), json.dumps([PREDICTED])[:-1]
REFUSED: dict[str, tuple[str | bytes, str]] = {
    "not_json": (JSONL + "x y\n", "x:2 is not JSON (Expecting value at 'x y'); correct it"),
    "truncated_line": (JSONL + '{"a": "b', "x:2 is not JSON (Unterminated string starting at '\"b'); correct it"),
    "truncated_first_line": ('{"a": \n' + JSONL, "x:1 is not JSON (Expecting ',' delimiter at the end); correct it"),
    "extra_comma": ('{"a": 1},\n', "x:1 is not JSON (extra data at ','); correct it"),
    "text_after_list": (LIST + "] oops", "x:1 is not JSON (Expecting value at 'oops'); correct it"),
    "text_after_second_list": (
        (LIST + "]\n") * 2 + "oops",
        "x:3 is not JSON (Expecting value at 'oops'); correct it",
    ),
    "comma_between_lists": (LIST + "],\n" + LIST + "]", "x:1 is not JSON (Expecting value at ','); correct it"),
    "truncated_list": (LIST, "x:1, row 2 is not JSON (',' or ']' is missing here); correct it"),
    "comma_before_list_end": (LIST + "\n,]", "x:2, row 2 is not JSON (Expecting value at ']'); correct it"),
    "missing_comma": (LIST + "{}]", "x:1, row 2 is not JSON (',' or ']' is missing here); correct it"),
    "truncated_item": (LIST + ',\n{"a": ', "x:2, row 2 is not JSON (Expecting value at the end); correct it"),
    "not_an_object": (JSONL + "7\n", "x:2 is not a JSON object; a row must be one"),
    "item_not_an_object": (LIST + ", []]", "x:1, row 2 is not a JSON object; a row must be one"),
    "nan": (JSONL + '{"a": NaN}\n', "x:2 has the number NaN, which is not JSON; write null"),
    "infinite": (
        LIST + ', {"a": -1e999}]', "x:1, row 2 has the number -1e999, which is too large for a float; write it as text",
    ),
    "huge_integer": (f'{{"a": {"1" * 5000}}}', "x:1 has an integer of more than 4300 digits; write it as text"),
    "nested": (JSONL + '{"a":' * 9999, "x:2 is nested too deep; write it with fewer levels"),
    "nested_list": ("[" * 9999, "x:1, row 1 is nested too deep; write it with fewer levels"),
    "lone_surrogate": (JSONL + r'{"a": "\ud83d"}', f"x:2 {json_stream.LONE_SURROGATE}"),
    "lone_surrogate_in_list": (LIST + r', {"a": ["\uDE00"]}]', f"x:1, row 2 {json_stream.LONE_SURROGATE}"),
    "latin_1": (
        JSONL.encode() + '{"a": "é"}'.encode("latin-1"), "x:2 is not UTF-8 (byte 0xe9); convert the file to UTF-8",
    ),
    "gb18030": ('[{"a": "人"}]'.encode("gb18030"), "x:1, row 1 is not UTF-8 (byte 0xc8); convert the file to UTF-8"),
    "utf32": (JSONL.encode("utf-32"), "x:1 is UTF-32; convert it to UTF-8"),
    "utf16_without_mark": (
        JSONL.encode("utf-16-le"),
        "x:1 is not text, or is UTF-16 without a byte order mark; convert it to UTF-8",
    ),
    "half_utf16_character": (
        JSONL.encode("utf-16")[:-1],
        "x ends within a UTF-16 character; download or copy it again",
    ),
    "empty": ("", "x holds no rows; it must be a JSON list, one JSON object per line, or parquet"),
    "blank": (" \n\n", "x holds no rows; it must be a JSON list, one JSON object per line, or parquet"),
    "empty_list": ("[]", "x holds no rows; it must be a JSON list, one JSON object per line, or parquet"),
    "no_instruction": (
        text(PREDICTED, {"x": 1}),
        'x:2 has no text under \'instruction\' (keys: x); a row is {"instruction", "input", "output"} or {"messages"}',
    ),
    "input_is_a_number": (
        text(A, A | {"input": 0}),
        'x:2 has an input that is not text; a row is {"instruction", "input", "output"} or {"messages"}',
    ),
}  # fmt: skip


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read()
    return str(caught.value)


def batch_refusal(path: Path) -> str:
    """Raise batch.py's error for a file or for its first invalid row."""
    found = [row.error for row in batch_rows.read_rows(path) if row.error]
    raise ValueError(found[0])


# How each command reads a file; all commands except ie_eval read instruction rows.
READERS: dict[str, Callable[[Path], object]] = {
    "finetune": lambda path: list(iterate_instructions(path)),
    "ie_run": lambda path: ie_run.main("base", str(path), "out"),
    "ie_eval": lambda path: scored_rows(str(path)),
    "batch": batch_refusal,
    "calibration": lambda path: sample_rows(path, 9, 0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_all_stages_refuse_a_file_in_the_same_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    content, message = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        Path("base", file).write_text("{}")  # the files may be empty because rows are read before the model
    Path("base/model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    Path("x").write_bytes(content if isinstance(content, bytes) else content.encode())
    for command, read in READERS.items():
        if command == "ie_eval" and "a row is" in message:  # ie_eval accepts rows without an instruction
            continue
        assert refusal(lambda read=read: read(Path("x"))) == message, command  # type: ignore[misc]
    assert "\n" not in message


@pytest.mark.parametrize("name", [name for name in READ if name not in ("gz", "zst")])
def test_all_stages_read_the_same_rows(tmp_path: Path, name: str) -> None:
    content, path = READ[name], tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert list(iterate_instructions(path)) == sample_rows(path, 9, 0)[0] == [A, B]
    assert [row.content for row in batch_rows.read_rows(path) if row.content] == [A, B]
    predictions = tmp_path / "p.json"
    predictions.write_text(text([row | {"prediction": "p"} for row in (A, B)]))
    rows = scored_rows(str(predictions), str(path))
    assert [(row.prediction, row.gold) for row in rows] == [("p", '{"山": []}'), ("p", "{}")]


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def test_output_that_is_not_text_counts_as_a_missing_answer() -> None:
    row = {"instruction": "Name a city.", "output": [None]}
    assert row_error(row, answers=True) and not row_error(row, answers=False)
    assert messages_of(row)[-1] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "is empty, begins with an answer or"),
        ({"messages": "q"}, "are not a list of objects"),
        ({"messages": [ANSWER, USER]}, "is empty, begins with an answer or"),
        ({"messages": [USER, ANSWER, ANSWER]}, "does not end with a user message"),
        ({"messages": [{"role": "human", "content": "q"}]}, "whose role is not one of system, user, assistant"),
        ({"messages": [{"role": "user"}]}, "a message without text under 'content'"),
        ({"messages": [{**USER, "input": 1}]}, "whose input is not text"),
        ({"messages": [USER, {**ANSWER, "input": "x"}]}, "an input in a message whose role is not user"),
        ({"messages": [USER], "instruction": "q"}, "has both messages and 'instruction'"),
        ({"messages": [USER], "input": "q"}, "has both messages and 'input'"),
        ({"messages": [USER], "input": 0}, "has both messages and 'input'"),
        ({"messages": [USER, ANSWER], "system": "s"}, "has both messages and 'system'"),
        ({"messages": [USER, ANSWER], "history": [["q", "a"]]}, "has both messages and 'history'"),
        ({"messages": [{**USER, "input": 0}, ANSWER]}, "whose input is not text"),
        ({"messages": [{**USER, "input": []}, ANSWER]}, "whose input is not text"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "a message with 'weight', which cannot be used"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{}]}]}, "a message with 'tool_calls', which cannot be used"),
        ({"messages": [USER, {**ANSWER, "reasoning_content": "r"}]}, "a message with 'reasoning_content'"),
        ({"instruction": "q", "input": 0, "output": "a"}, "has an input that is not text"),
        ({"instruction": "q", "input": [], "output": "a"}, "has an input that is not text"),
        ({"instruction": "q", "system": 5, "output": "a"}, "has a system that is not text"),
        ({"instruction": "q", "history": "x", "output": "a"}, "has a history that is not a list of [question, answer]"),
        ({"instruction": "q", "history": [["x"]], "output": "a"}, "has a history that is not a list of"),
        ({"instruction": "q", "history": [["x", 1]], "output": "a"}, "has a history that is not a list of"),
        ({"instruction": None}, "has no text under 'instruction'"),
    ],
)
def test_invalid_instruction_rows_are_refused_with_the_reason(row: dict[str, Any], message: str) -> None:
    assert message in row_error(row, answers=False)
    assert row_error(row, answers=True)


def test_system_and_history_of_a_row_become_messages() -> None:
    row = {"instruction": "q", "input": "i", "output": "a", "system": "s", "history": [["q1", "a1"], ["q2", "a2"]]}
    assert row_error(row, answers=True) == ""
    asked = {"role": "user", "content": "q", "input": "i"}
    before = [
        {"role": "system", "content": "s"}, {"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"},
    ]  # fmt: skip
    assert messages_of(row) == [*before, asked, ANSWER]
    assert batch_rows.generate_request(row | {"model": "m"}, "", {}) == {"messages": [*before, asked], "model": "m"}
    empty = {"instruction": "q", "output": "a", "system": "", "history": []}
    assert row_error(empty | {"messages": None}, answers=True) == ""
    assert messages_of(empty) == messages_of({"instruction": "q", "output": "a", "system": None, "history": None})
    assert batch_rows.generate_request(empty, "", {}) == {"instruction": "q"}
    kept = {"messages": [USER, {**ANSWER, "weight": 1, "tool_calls": []}], "input": "", "system": None}
    assert row_error(kept, answers=True) == ""
    assert row_error({"messages": [USER, ANSWER], "output": "b"}, answers=True) == "has both messages and 'output'"
    assert row_error({"messages": [USER], "output": "b"}, answers=False) == ""


def test_rejected_row_is_refused_only_for_tuning(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "q", "output": "a", "rejected_by": "rouge"}))
    with pytest.raises(ValueError, match=r"rows.jsonl:1 was rejected by the filter 'rouge' of instruct_select.py"):
        list(iterate_instructions(path))
    assert len(list(iterate_instructions(path, answers=False))) == 1


def test_answer_is_required_only_for_tuning() -> None:
    for row in ({"instruction": "q"}, {"messages": [USER]}, {"messages": [USER, ANSWER, USER]}):
        assert row_error(row, answers=False) == ""
        assert row_error(row, answers=True)
    assert messages_of({"messages": [USER | {"input": None, "name": "x"}, ANSWER]}) == [USER, ANSWER]
    assert prompt_messages({"messages": [USER, ANSWER, USER]}) == [USER, ANSWER, USER]
    assert prompt_messages({"messages": [USER, ANSWER]}) == [USER]
    assert prompt_messages({"instruction": "q", "output": "a"}) == [{"role": "user", "content": "q", "input": ""}]


@pytest.mark.parametrize("indents", [(None, None, None), (1, 1, 1), (None, 1, None)])
def test_rows_of_all_joined_lists_are_read(tmp_path: Path, indents: tuple[int | None, ...]) -> None:
    """Three lists of eight rows each, as `cat a.json b.json c.json` joins them, with and without line ends between."""
    rows = [{"instruction": f"q{number}", "output": "a"} for number in range(24)]
    lists = [json.dumps(rows[8 * part :][:8], indent=indent) for part, indent in enumerate(indents)]
    for separator in ("", "\n", " "):
        (tmp_path / "x.json").write_text(separator.join(lists))
        assert list(iterate_instructions(tmp_path / "x.json")) == rows
        assert [row.content for row in batch_rows.read_rows(tmp_path / "x.json")] == rows


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=3), VALUES, min_size=1, max_size=2), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(OBJECTS, st.booleans(), st.sampled_from([None, 1]), st.booleans(), st.sampled_from(["utf-8", "utf-16"]))
def test_written_rows_are_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]], escaped: bool, indent: int | None, in_list: bool, encoding: str,
) -> None:  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "written.json"
    path.write_bytes(text(*([rows] if in_list else rows), ensure_ascii=escaped, indent=indent).encode(encoding))
    read = list(iterate_rows(path))
    assert ([row.content for row in read], {row.error for row in read}) == (rows, {""})


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | st.text('[]{}:,"\\ud8 \n1e.NaN', max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    try:
        for row in iterate_rows(path, blank_lines=True):
            assert row.location.startswith(f"{path}:")
    except ValueError as error:
        assert str(error).startswith(str(path))


def test_reading_a_megabyte_takes_linear_time_and_less_than_three_megabytes(tmp_path: Path) -> None:
    """The files are a list on one line, objects on several lines, and truncated lines."""
    row = {"instruction": "x" * 200, "output": "y"}
    listed, spread, cut = (tmp_path / name for name in ("list", "spread", "cut"))
    listed.write_text(json.dumps([row] * 4_000))
    spread.write_text(text(row, indent=1) * 4_000)
    cut.write_text(text(row) + '{"a": \n' * 8_000)
    for path, count in ((listed, 4_000), (spread, 4_000), (cut, 8_001)):
        tracemalloc.start()
        started = time.process_time()
        assert sum(1 for _ in iterate_rows(path)) == count
        assert time.process_time() - started < 3  # a quadratic reader takes ten seconds
        assert tracemalloc.get_traced_memory()[1] < 3e6
        tracemalloc.stop()


def test_parquet_is_read_like_json(tmp_path: Path) -> None:
    rows = [
        {"instruction": "a", "input": None, "output": "b", "messages": None},
        {
            "instruction": None,
            "input": None,
            "output": None,
            "messages": [USER, ANSWER],
        },
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert list(iterate_instructions(tmp_path / "rows.parquet")) == rows
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"broken\.parquet, row 1 cannot be read as parquet"):
        list(iterate_rows(tmp_path / "broken.parquet"))


def test_a_damaged_archive_is_refused_with_its_line(tmp_path: Path) -> None:
    for ending, packed in (("gz", gzip.compress(text(A, B).encode())), ("zst", zstd(text(A, B).encode()))):
        (path := tmp_path / f"x.jsonl.{ending}").write_bytes(packed[:-12])
        with pytest.raises(ValueError, match=rf"x\.jsonl\.{ending} is damaged after line \d+"):
            list(iterate_rows(path))


def test_sources_are_found_in_folders_files_and_named_files(tmp_path: Path) -> None:
    for name in ("zh.jsonl", "en.json", "more.parquet", "notes.txt", "extraction.json"):
        (tmp_path / name).write_text("x")
    (tmp_path / "sub").mkdir()
    found = find_sources([str(tmp_path)])
    assert [source.name for source in found] == ["en", "more", "zh"]
    zh, en = tmp_path / "zh.jsonl", tmp_path / "en.json"
    (tmp_path / "upper").mkdir()
    for name in ("A.JSONL", "B.Json.GZ", "C.PARQUET", "TYPES.json", "D.parquet.gz"):
        (tmp_path / "upper" / name).write_text("x")
    assert [source.path.name for source in find_sources([str(tmp_path / "upper")])] == [
        "A.JSONL", "B.Json.GZ", "C.PARQUET",
    ]  # fmt: skip
    assert find_sources([f"{zh},{en}"]) == [Source("zh", zh), Source("en", en)]
    assert find_sources([f"a={zh}", f"b={zh}"]) == [Source("a", zh), Source("b", zh)]
    with pytest.raises(ValueError, match="two sources are called zh; name them"):
        find_sources([str(zh), str(zh)])
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        find_sources([str(tmp_path / "gone")])
    with pytest.raises(FileNotFoundError, match=r"holds no \.json"):
        find_sources([str(tmp_path / "sub")])


def test_texts_are_rows_or_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(text({"body": "山\n"}), encoding="utf-16")
    (tmp_path / "a.txt").write_text("\ufeffone\ntwo", encoding="utf-8")
    assert list(iterate_texts(tmp_path / "a.jsonl", "body")) == ["山\n"]
    assert list(iterate_texts(tmp_path / "a.txt")) == ["one", "two"]
    with pytest.raises(ValueError, match=r"a\.jsonl:1 has no text under 'text' \(keys: body\)"):
        list(iterate_texts(tmp_path / "a.jsonl"))


def test_read_json_accepts_exactly_one_value(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n{"a": [1]}\n', encoding="utf-16")
    assert read_json(path) == {"a": [1]}
    for content, message in (
        ("{}\n{}", "2 is not JSON (extra data"),
        ("[1,\n]", "2 is not JSON"),
        ("", "1 is not JSON"),
    ):
        path.write_text(content)
        assert f"a.json:{message}" in refusal(lambda: read_json(path))
