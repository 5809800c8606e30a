"""tokenized_examples.py: the cache of examples, truncation, supervised spans, and memory."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chat_prompts.prompt_encoding import PromptEncoder, Turn
from instruction_data import tokenized_examples
from instruction_data.data_sources import Source
from instruction_data.named_templates import load_template
from instruction_data.tokenized_examples import EncodedRow, EncodingSettings, cache_key, encode_turns, open_examples
from json_rows.instruction_rows import messages_of
from json_rows.json_stream import LONE_SURROGATE
from transformers import AutoTokenizer
from tuning_runs import encoded, opened


@pytest.fixture
def tokenizer(tiny_tokenizer: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    tokenizer.chat_template = load_template("alpaca")
    return tokenizer


def test_cached_examples_equal_the_encoded_rows(
    tmp_path: Path, tokenizer: Any, rows: list[dict[str, str]], rows_file: Path
) -> None:
    cutoff = sorted(len(row.ids) for row in encoded(tokenizer, rows, 512))[len(rows) // 2]
    whole = [row for row in encoded(tokenizer, rows, cutoff) if not row.dropped]
    dropped = opened(tokenizer, rows_file, tmp_path, cutoff).dropped
    assert dropped == {f"longer than {cutoff} tokens": len(rows) - len(whole)}
    settings = EncodingSettings(cutoff, truncate_answers=True)
    examples = [row for row in encoded(tokenizer, rows, *settings) if not row.dropped]
    kept = open_examples(PromptEncoder(tokenizer), Source("rows", rows_file), settings, tmp_path)
    assert len(kept) == len(examples) > len(whole)
    assert kept.truncated == sum(example.truncated for example in examples) == len(examples) - len(whole)
    for index, example in enumerate(examples):
        ids, spans = kept[index]
        assert ids.tolist() == example.ids
        assert spans.ravel().tolist() == example.spans
    assert kept.lengths.tolist() == [len(example.ids) for example in examples]
    assert kept.supervised.tolist() == [example.supervised for example in examples]
    again = pickle.loads(pickle.dumps(kept))
    assert again[3][0].tolist() == kept[3][0].tolist()


def test_row_numbers_count_dropped_rows(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"instruction": "a", "output": text} for text in ("x", "", "y")]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = opened(tokenizer, file, tmp_path / "cache")
    assert kept.row_numbers.tolist() == [0, 2]
    assert kept.counts() == {
        "kept": 2, "truncated": 0, "dropped": {"the answer is empty": 1}, "tokens": kept.lengths.sum(), "supervised": 4,
    }  # fmt: skip
    assert opened(tokenizer, file, tmp_path / "cache", cutoff=20).dropped == {
        "longer than 20 tokens": 2, "the answer is empty": 1,
    }  # fmt: skip


def test_file_is_encoded_again_only_if_content_settings_or_template_change(
    tmp_path: Path, tokenizer: Any, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    encode = tokenized_examples.encode_rows

    def noted(*given: Any) -> Any:
        made.append(rows_file)
        return encode(*given)

    monkeypatch.setattr(tokenized_examples, "encode_rows", noted)
    encoder, source, cache = PromptEncoder(tokenizer), Source("rows", rows_file), tmp_path / "cache"
    for _ in range(2):
        open_examples(encoder, source, EncodingSettings(512), cache)
    assert len(made) == 1
    other = tmp_path / "other.jsonl"
    other.write_bytes(rows_file.read_bytes())
    open_examples(encoder, Source("other", other), EncodingSettings(512), cache)  # equal rows, another name
    assert len(made) == 1
    open_examples(encoder, source, EncodingSettings(100), cache)
    open_examples(encoder, source, EncodingSettings(512, train_on_inputs=True), cache)
    other.write_bytes(rows_file.read_bytes() + b'{"instruction": "a", "output": "b"}\n')
    open_examples(encoder, Source("other", other), EncodingSettings(512), cache)
    before = cache_key(encoder, rows_file, EncodingSettings(512))
    tokenizer.chat_template = load_template("alpaca_short")
    assert cache_key(PromptEncoder(tokenizer), rows_file, EncodingSettings(512)) != before
    assert len(made) == 4
    assert len(list(cache.glob("*.arrow"))) == len(list(cache.iterdir())) == 4


def test_bad_row_is_an_error_with_its_place_and_leaves_no_cache(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "a", "output": "b"}\n' * 3 + "{}\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:4 has no text under 'instruction'"):
        opened(tokenizer, file, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


BAD = {
    '{"messages": [{"role": "user", "content": "q", "input": 5}, {"role": "assistant", "content": "a"}]}':
        "has a message whose input is not text, or an input in a message whose role is not user",
    '{"instruction": "\\ud800", "output": "a"}': f"{LONE_SURROGATE.partition(';')[0]}",
    '{"a": ' * 100_000: "is nested too deep",
    '{"instruction": "q", "system": "s", "output": "a"}':
        "the alpaca template knows the roles user and assistant, not system",
    '{"instruction": "q", "input": 0, "output": "a"}': "has an input that is not text",
    "no JSON": "is not JSON (Expecting value at 'no JSON')",
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_bad_row_stops_with_its_line_or_is_dropped_and_counted(tmp_path: Path, tokenizer: Any, bad: str) -> None:
    good, file = '{"instruction": "a", "output": "b"}\n', tmp_path / "rows.jsonl"
    file.write_text(good * 3 + bad + "\n" + good)
    with pytest.raises(ValueError, match=r"rows\.jsonl:4 ") as caught:
        opened(tokenizer, file, tmp_path / "cache")
    assert BAD[bad] in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())
    settings = EncodingSettings(512, skip_errors=True)
    kept = open_examples(PromptEncoder(tokenizer), Source("rows", file), settings, tmp_path / "cache")
    assert kept.row_numbers.tolist() == [0, 1, 2, 4]
    [(reason, count)] = kept.dropped.items()
    assert (BAD[bad] in reason, count) == (True, 1)


def test_every_whole_example_ends_in_a_supervised_eos(tokenizer: Any, rows: list[dict[str, str]]) -> None:
    """An example that does not fit is dropped; with truncate_answers it keeps the first tokens, without EOS."""
    eos = tokenizer.eos_token_id
    whole = encoded(tokenizer, rows, 512)
    assert {(example.truncated, example.dropped) for example in whole} == {(False, None)}
    lengths = [len(example.ids) for example in whole]
    cutoff = sorted(lengths)[len(lengths) // 2]
    for example, kept, cut in zip(
        whole, encoded(tokenizer, rows, cutoff), encoded(tokenizer, rows, cutoff, False, True), strict=True
    ):
        start, end = example.spans
        if end <= cutoff:
            assert kept == cut == example
        else:
            assert kept == EncodedRow([], [], dropped=f"longer than {cutoff} tokens")
            no_room = f"the prompt leaves no room for the answer in {cutoff} tokens"
            ids, spans = example.ids[:cutoff], [start, cutoff]
            expected = (
                EncodedRow(ids, spans, cutoff - start, True)
                if start < cutoff
                else EncodedRow([], [], 0, False, no_room)
            )
            assert cut == expected
            assert eos not in cut.ids
    for row, example in zip(rows, whole, strict=True):
        start, end = example.spans
        assert end == len(example.ids)
        assert example.ids.index(eos) == end - 1
        assert tokenizer.decode(example.ids[:end]).endswith(row["output"] + "</s>")
        assert example.ids[:start] == PromptEncoder(tokenizer).prompt_ids(messages_of(row)[:1])
    everything = encoded(tokenizer, rows, 512, True)
    assert [example.spans for example in everything] == [[0, len(example.ids)] for example in whole]


def test_rows_without_room_or_answer_are_dropped_and_counted(tokenizer: Any) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "short", "input": None, "output": "yes"},
        {"instruction": "long " * 200, "output": "yes"},
        {"instruction": "silent", "output": ""},
    ]
    for truncate, reason in (
        (False, "longer than 200 tokens"),
        (True, "the prompt leaves no room for the answer in 200 tokens"),
    ):
        dropped = [row.dropped for row in encoded(tokenizer, rows, 200, False, truncate)]
        assert dropped == [None, reason, "the answer is empty"]


@pytest.mark.parametrize(
    ("cutoff", "ids", "spans"),
    [
        (12, [1, 1, 1, 7, 7, 2, 3, 3, 8, 8, 8, 2], [3, 6, 8, 12]),
        (11, [1, 1, 1, 7, 7, 2, 3, 3, 8, 8, 8], [3, 6, 8, 11]),
        (9, [1, 1, 1, 7, 7, 2, 3, 3, 8], [3, 6, 8, 9]),
        (8, [1, 1, 1, 7, 7, 2], [3, 6]),
        (5, [1, 1, 1, 7, 7], [3, 5]),
        (4, [1, 1, 1, 7], [3, 4]),
        (3, [], []),
    ],
)
def test_truncated_example_has_no_end_after_a_cut_answer(cutoff: int, ids: list[int], spans: list[int]) -> None:
    turns = [Turn([1, 1, 1], [7, 7], [2]), Turn([3, 3], [8, 8, 8], [2])]
    supervised = sum(end - start for start, end in zip(spans[::2], spans[1::2], strict=True))
    reason = None if ids else f"the prompt leaves no room for the answer in {cutoff} tokens"
    expected = EncodedRow(ids, spans, supervised, bool(ids) and cutoff < 12, reason)
    assert encode_turns(turns, EncodingSettings(cutoff, truncate_answers=True)) == expected
    dropped = EncodedRow([], [], dropped=f"longer than {cutoff} tokens")
    assert encode_turns(turns, EncodingSettings(cutoff)) == (expected if cutoff == 12 else dropped)


MEASURE = """
import resource, sys
sys.path.insert(0, "finetune")
from pathlib import Path
from chat_prompts.prompt_encoding import PromptEncoder
from instruction_data.named_templates import load_template
from instruction_data.data_sources import Source
from instruction_data.tokenized_examples import EncodingSettings, open_examples
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
tokenizer.chat_template = load_template("alpaca_short")
encoder = PromptEncoder(tokenizer)
for file in sys.argv[2:]:
    open_examples(encoder, Source("x", Path(file)), EncodingSettings(4096), Path(file).parent / "cache")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.integration
def test_memory_does_not_grow_with_the_file(tmp_path: Path, tiny_tokenizer: Path, repository: Path) -> None:
    """A list four times as long, with 15 MB more of text and ids, needs less than 10 MB more memory."""
    row = json.dumps({"instruction": "x" * 600, "input": "Bafi was born in Tola. " * 60, "output": "Tola"})
    for name, count in (("small", 2000), ("large", 8000)):
        (tmp_path / f"{name}.json").write_text("[" + ",\n".join([row] * count) + "]")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tiny_tokenizer, tmp_path / "small.json", tmp_path / "large.json"],
        cwd=repository, capture_output=True, text=True, check=True,
    )  # fmt: skip
    small, large = map(int, done.stdout.split())
    assert large - small < 10
