"""pretrain/preprocess.py as a user runs it: every mode, the published command lines, and what it says to bad input."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import preprocess
import pyarrow
import pytest
import segment
import sentencepiece
from conftest import REPOSITORY, RunScript, small_texts
from corpus import Corpus, verify
from pyarrow import parquet

SCRIPT = "pretrain/preprocess.py"


def rows(path: Path, texts: list[str], key: str = "text") -> Path:
    path.write_text("".join(json.dumps({key: text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def document_ids(corpus: Corpus) -> list[list[int]]:
    """Each document's samples put together again."""
    return [np.concatenate([corpus[i] for i in range(a, b)]).tolist() for a, b in pairwise(corpus.documents)]


def files_of(folder: Path, prefix: str) -> dict[str, bytes]:
    return {p.name.removeprefix(prefix): p.read_bytes() for p in folder.glob(f"{prefix}.*")}


def test_documents_are_sentencepieces_ids_between_bos_and_eos(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path
) -> None:
    """Exactly, from JSONL with another key, from text and from .gz; ranges, counts and hashes are right."""
    texts = [" ".join(small_texts()[i : i + 9]) for i in range(0, 90, 9)]
    texts += ["<s> is text</s>", "  spaces\tand {braces} %s\x00 🤖 ", "two\nlines\r\n", "x" * 300]
    rows(tmp_path / "a.jsonl", texts, "content")
    (tmp_path / "b.txt").write_bytes("one\r\ntwo\n\nthree".encode("utf-8-sig"))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"four\n"))
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(b'{"content": "five"}\n'))
    done = run_script(
        SCRIPT, "--mode", "write", "--file_path", tmp_path / "a.jsonl", tmp_path / "*.txt", tmp_path / "[cd].*",
        "--save_prefix", tmp_path / "out/all", "--tokenizer_path", tiny_tokenizer, "--seq_length", 64,
        "--text_key", "content",
    )  # fmt: skip
    corpus = verify(tmp_path / "out/all")
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tiny_tokenizer / "tokenizer.model"))
    truth = [*texts, "one", "two", "three", "four", "five"]
    assert document_ids(corpus) == [[1, *oracle.encode(text), 2] for text in truth]
    assert corpus.lengths.max() <= 64
    assert f"{len(truth)} documents" in done.stdout and "1 documents dropped" in done.stdout
    dropped = [json.loads(line) for line in (tmp_path / "out/all.dropped.jsonl").open()]
    assert dropped == [{"file": str(tmp_path / "b.txt"), "line": 3, "reason": "no text", "text": ""}]
    assert corpus.sources == [
        {
            "name": "all", "type": 0, "start": 0, "end": len(corpus),
            "documents": len(truth), "tokens": int(corpus.lengths.sum()),
        }
    ]  # fmt: skip
    assert corpus.sidecar["settings"]["self_checked_documents"] == len(truth)


def test_samples_end_with_sentences(tmp_path: Path, tiny_tokenizer: Path) -> None:
    text = "".join(small_texts(200))
    preprocess.write(
        [str(rows(tmp_path / "a.jsonl", [text]))], str(tmp_path / "a"), str(tiny_tokenizer), preprocess.Settings(128)
    )
    corpus = Corpus(tmp_path / "a")
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tiny_tokenizer / "tokenizer.model"))
    ends, at = set(segment.sentence_ends(text)), ""
    for sample in corpus:
        at += oracle.decode([5, *sample.tolist()])[len(oracle.decode([5])) :]  # a first piece, so that no space is lost
        assert len(at.lstrip()) in ends | {len(text)} or len(at) in ends
    assert at.strip() == text
    assert corpus.lengths.min() > 64  # balanced: no scrap at the end


def test_the_number_of_workers_changes_nothing(tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path) -> None:
    """Not a byte, sidecar included, over many batches."""
    source = rows(tmp_path / "a.jsonl", [*small_texts(2000), *["long sentence, " * 900 + "山水。" * 500] * 60, " "])
    for workers in (1, 2, 3):
        folder = tmp_path / str(workers)
        run_script(
            SCRIPT, "--mode", "write", "--file_path", source, "--save_path", folder, "--save_prefix", "a",
            "--tokenizer_path", tiny_tokenizer, "--seq_length", 256, "--min_length", 20, "--num_workers", workers,
        )  # fmt: skip
        assert files_of(folder, "a") == files_of(tmp_path / "1", "a")
    assert len(files_of(tmp_path / "1", "a")) == 4
    corpus = Corpus(tmp_path / "1/a")
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "1/a.dropped.jsonl").open()]
    assert reasons[-1] == "no text" and all(r.endswith("tokens, min_length is 20") for r in reasons[:-1])
    assert len(reasons) + corpus.sidecar["documents"] == 4061 and len(reasons) > 1


def test_keeping_newlines_and_dropping_nothing_else(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path
) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo")
    run_script(
        SCRIPT, "--mode", "write", "--file_path", tmp_path / "a.txt", "--save_prefix", tmp_path / "a",
        "--tokenizer_path", tiny_tokenizer, "--do_keep_newlines", "--do_split_sentences", "--language", "english",
    )  # fmt: skip
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tiny_tokenizer / "tokenizer.model"))
    assert document_ids(Corpus(tmp_path / "a")) == [[1, *oracle.encode(text), 2] for text in ("one\n", "two")]


def test_merging_and_reading(tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path) -> None:
    """Lists in comma and in Python's notation; reading shows sources and text, and refuses another tokenizer."""
    for name, text in (("en", "A cat."), ("zh", "山水人家。")):
        preprocess.write([str(rows(tmp_path / f"{name}.jsonl", [text]))], str(tmp_path / name), str(tiny_tokenizer))
    run_script(
        SCRIPT, "--mode", "merge", "--merge_path_prefix", "en,zh", "--merge_path_type", "0,1",
        "--new_path_prefix", "ab", cwd=tmp_path,
    )  # fmt: skip
    run_script(
        SCRIPT, "--mode", "merge", "--merge_path_prefix", "['en', 'zh']", "--merge_path_type", "[0,", "1]",
        "--new_path_prefix", "ba", cwd=tmp_path,
    )  # fmt: skip
    assert files_of(tmp_path, "ab") == files_of(tmp_path, "ba")
    shown = run_script(SCRIPT, "--mode", "read", "--read_path_prefix", tmp_path / "ab", "--show", 2).stdout
    assert '"A cat."' in shown and '"山水人家。"' in shown and "zh " in shown
    verified = run_script(SCRIPT, "--mode", "verify", "--read_path_prefix", tmp_path / "ab").stdout
    assert "as the sidecar says" in verified
    other = json.loads((tiny_tokenizer / "tokenizer_config.json").read_text())
    (tmp_path / "other").mkdir()
    table = json.loads((tiny_tokenizer / "tokenizer.json").read_text())
    table["added_tokens"].append(table["added_tokens"][-1] | {"id": 800, "content": "<new>"})
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(table))
    (tmp_path / "other/tokenizer_config.json").write_text(json.dumps(other))
    refused = run_script(
        SCRIPT, "--mode", "read", "--read_path_prefix", tmp_path / "ab", "--tokenizer_path", tmp_path / "other",
        status=2,
    )  # fmt: skip
    assert "but" in refused.stderr and "was written with" in refused.stderr


def test_list_notations_are_literals_only() -> None:
    assert preprocess.literals(["a,b", "c"], str) == ["a", "b", "c"]
    assert preprocess.literals(["['a/x','b']"], str) == ["a/x", "b"]
    assert preprocess.literals(["[0,0,1]"], int) == preprocess.literals(["0,0,1"], int) == [0, 0, 1]
    for bad, kind in (("[__import__('os')]", str), ("['a', 1]", str), ("0,x", int), ("[0, True]", int), ("[0", int)):
        with pytest.raises(ValueError, match="is no list of"):
            preprocess.literals([bad], kind)


@pytest.fixture(scope="module")
def one_row(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows(tmp_path_factory.mktemp("in") / "a.jsonl", ["some text"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"content": "x"}\n', "line 1 has no key 'text'; name the text's key with --text_key; there are: content"),
        (b'{"text": "x"}\nno json\n', "line 2 is no JSON"),
        (b'[{"text": "x"}]\n', "a JSON list; one object a line is read"),
        (b'"text"\n', "line 1 is no JSON object"),
        (b'{"text": 5}\n', "'text' is int, not text"),
        (b'{"text": "\\ud800"}\n', "half a surrogate pair"),
        (b'{"text": "\xff"}\n', "line 1 is no UTF-8"),
        (b"", "no document to write"),
        (b"\n  \n", "no document to write"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, tiny_tokenizer: Path, content: bytes, message: str) -> None:
    """Raised by the core with the place named; nothing is left of the corpus, nor of its folder."""
    (tmp_path / "a.jsonl").write_bytes(content)
    for workers in (1, 2):
        with pytest.raises(ValueError) as raised:
            preprocess.write(
                [str(tmp_path / "a.jsonl")], str(tmp_path / "out/a"), str(tiny_tokenizer), num_workers=workers
            )
        assert message in str(raised.value) and "\n" not in str(raised.value)
        assert not (tmp_path / "out").exists()


def packed(data: bytes) -> bytes:
    """Zstandard, in two frames, as tools write it that pack in parallel."""
    codec = pyarrow.Codec("zstd")
    half = data.index(b"\n", len(data) // 2) + 1
    return b"".join(codec.compress(part).to_pybytes() for part in (data[:half], data[half:]))


def test_a_damaged_archive_is_named(tmp_path: Path, tiny_tokenizer: Path) -> None:
    rows_of_text = b'{"text": "x"}\n' * 5000
    for ending, whole in (("gz", gzip.compress(rows_of_text)), ("zst", packed(rows_of_text))):
        (tmp_path / f"whole.jsonl.{ending}").write_bytes(whole)
        preprocess.write([str(tmp_path / f"whole.jsonl.{ending}")], str(tmp_path / ending), str(tiny_tokenizer))
        assert Corpus(tmp_path / ending).sidecar["documents"] == 5000
        for name, data in (("cut", whole[:-20]), ("not", b"plain"), ("bits", whole[:40] + b"x" * 40)):
            path = tmp_path / f"{name}.jsonl.{ending}"
            path.write_bytes(data)
            with pytest.raises(ValueError, match=f"{path.name} is damaged after line"):
                preprocess.write([str(path)], str(tmp_path / "out"), str(tiny_tokenizer))
    assert not list(tmp_path.glob("out*"))


def texts_of(prefix: Path, tokenizer: Path) -> list[str]:
    """The corpus's documents, decoded."""
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))
    return [oracle.decode(ids[1:-1]) for ids in document_ids(Corpus(prefix))]


def test_fields_are_joined_and_their_braces_are_data(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path
) -> None:
    """From JSONL and from parquet alike."""
    table = [{"title": "A {body} of {0}", "body": "says {title}", "n": 1}, {"title": "", "body": "Two.", "n": 2}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "a.parquet")
    for ending in ("jsonl", "parquet"):
        run_script(
            SCRIPT, "--mode", "write", "--file_path", tmp_path / f"a.{ending}", "--save_prefix", tmp_path / ending,
            "--tokenizer_path", tiny_tokenizer, "--text_template", "{title}\\n{body}",
        )  # fmt: skip
        assert texts_of(tmp_path / ending, tiny_tokenizer) == ["A {body} of {0}\nsays {title}", "\nTwo."]
        for template, said in (("{title} {gone}", "line 1 has no key 'gone'"), ("{n}", "line 1: 'n' is int, not text")):
            refused = run_script(
                SCRIPT, "--mode", "write", "--file_path", tmp_path / f"a.{ending}", "--save_prefix", tmp_path / "no",
                "--tokenizer_path", tiny_tokenizer, "--text_template", template, status=2,
            )  # fmt: skip
            assert f"a.{ending} {said}" in refused.stderr and refused.stderr.count("\n") == 1
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cut\.parquet is damaged"):
        preprocess.write([str(tmp_path / "cut.parquet")], str(tmp_path / "no"), str(tiny_tokenizer))
    assert not list(tmp_path.glob("no*"))


def test_what_cannot_be_read_is_left_out_and_reported_when_asked(tmp_path: Path, tiny_tokenizer: Path) -> None:
    lines = [b'{"text": "one"}', b"no json", b'{"text": "\xff"}', b'{"text": 5}', b"", b'{"text": "nul\\u0000"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "two"}\n' * 3)[:-3])
    (tmp_path / "c.txt").write_bytes(b"three\n")
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl.gz", "c.txt")]
    settings = preprocess.Settings(on_error="skip")
    preprocess.write(files, str(tmp_path / "out"), str(tiny_tokenizer), settings, num_workers=2)
    assert [text for text in texts_of(tmp_path / "out", tiny_tokenizer) if text != "two"] == ["one", "nul\x00", "three"]
    dropped = [json.loads(line) for line in (tmp_path / "out.dropped.jsonl").open()]
    assert [(Path(row["file"]).name, row["line"]) for row in dropped][:4] == [("a.jsonl", n) for n in (2, 3, 4, 5)]
    assert "is damaged" in dropped[4]["reason"] and len(dropped) == 5


def test_where_a_file_is_cut_changes_nothing_but_the_self_check(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """Shards from one byte on: the same tokens, samples and dropped lines; an error names the file's own line."""
    texts = [*small_texts(60), " ", "山水。" * 40, "", "end"]
    source = rows(tmp_path / "a.jsonl", texts)
    settings = preprocess.Settings(seq_length=32, min_length=4)
    for size in (1, 7, 300, 1000, 10**9):
        preprocess.write([str(source)], str(tmp_path / f"{size}"), str(tiny_tokenizer), settings, shard_bytes=size)
        for ending in ("bin", "idx", "dropped.jsonl"):
            assert (tmp_path / f"{size}.{ending}").read_bytes() == (tmp_path / f"1.{ending}").read_bytes()
    with source.open("a") as file:
        file.write('{"text": 5}\n{"text": "last"}')
    with pytest.raises(ValueError, match=rf"a\.jsonl line {len(texts) + 1}: 'text' is int"):
        preprocess.write([str(source)], str(tmp_path / "bad"), str(tiny_tokenizer), shard_bytes=200)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--mode write", "--mode write needs --file_path"),
        ("--mode merge --merge_path_prefix a", "--mode merge needs --new_path_prefix"),
        ("--mode read", "--mode read needs --read_path_prefix"),
        ("--mode read --read_path_prefix no/x", "no/x.json does not exist; give a corpus by its prefix"),
        ("--mode write --file_path no*.txt --save_prefix o --tokenizer_path T", "no*.txt matches no file"),
        ("--mode write --file_path a.txt --save_prefix o --tokenizer_path no", "no is no folder"),
        ("--mode write --file_path . --save_prefix o --tokenizer_path T", ". is no file"),
        ("--mode write --file_path a.md --save_prefix o --tokenizer_path T", "a.md is not .jsonl, .json, .txt"),
        ("--mode write --seq_len 9", "unrecognized arguments: --seq_len 9"),
        ("--mode write --seq_length 7", "7 is no whole number of 8 or more"),
        ("--mode build", "invalid choice: 'build'"),
        ("--mode merge --merge_path_prefix [open('x')] --new_path_prefix o", "is no list of str"),
        ("--mode merge --merge_path_prefix a,b --merge_path_type 0,-1 --new_path_prefix o", "-1"),
    ],
)
def test_a_bad_command_line_is_one_clear_line(
    tmp_path: Path, run_script: RunScript, options: str, message: str
) -> None:
    for name in ("a.txt", "a.md"):
        (tmp_path / name).write_text("x")
    done = run_script(SCRIPT, *options.split(), status=2, cwd=tmp_path)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "a.md"}


def test_an_existing_corpus_is_kept_unless_told_otherwise(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path, one_row: Path
) -> None:
    options = [
        "--mode", "write", "--file_path", one_row, "--save_prefix", tmp_path / "a", "--tokenizer_path", tiny_tokenizer,
    ]  # fmt: skip
    run_script(SCRIPT, *options)
    before = files_of(tmp_path, "a")
    assert (
        "exists already; name another prefix, remove it, or add --overwrite"
        in run_script(SCRIPT, *options, status=2).stderr
    )
    assert files_of(tmp_path, "a") == before
    run_script(SCRIPT, *options, "--overwrite", "--seq_length", 8)
    assert files_of(tmp_path, "a") != before


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path) -> None:
    """A file size limit stands in for the full disk: the same error at the same place."""
    source = rows(tmp_path / "a.jsonl", small_texts(6000))
    command = f"ulimit -f 64; exec {sys.executable} {REPOSITORY / SCRIPT} --mode write --file_path {source} " + (
        f"--save_prefix {tmp_path}/out/a --tokenizer_path {tiny_tokenizer}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2 and "out/a could not be written (File too large); free space there" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_no_process_and_goes_on_where_it_was(
    tmp_path: Path, tiny_tokenizer: Path, kill: signal.Signals
) -> None:
    """Stopped or killed, the workers end and finished shards stay; the same command makes the same bytes of them."""
    big = rows(tmp_path / "big.jsonl", [f"{number} many words, " * 2500 for number in range(400)])
    first = rows(tmp_path / "a.jsonl", small_texts(200))

    def command(prefix: str, workers: int) -> list[str]:
        return [
            sys.executable, str(REPOSITORY / SCRIPT), "--mode", "write", "--save_prefix", f"{tmp_path / prefix}/out",
            "--tokenizer_path", str(tiny_tokenizer), "--num_workers", str(workers), "--shard_megabytes", "1",
            "--file_path", str(first), str(big),
        ]  # fmt: skip

    process = subprocess.Popen(command("stopped", 2), stderr=subprocess.PIPE, text=True, start_new_session=True)
    shards = tmp_path / "stopped/out.shards"
    while not (shards / "000000.json").exists():
        time.sleep(0.01)
    process.send_signal(kill)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[kill]
    assert "Traceback" not in stderr
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("worker processes are left")
    assert not (tmp_path / "stopped/out.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in shards.glob("[0-9]*.json")}
    assert 0 < len(kept) < 15
    again = subprocess.Popen(command("stopped", 1), stderr=subprocess.PIPE)
    while not (tmp_path / "stopped/out.json").exists() and again.poll() is None:
        seen = {path: path.stat().st_mtime_ns for path in kept if path.exists()}
        assert seen.items() <= kept.items()
        time.sleep(0.05)
    assert again.wait() == 0
    subprocess.run(command("undisturbed", 2), check=True, capture_output=True)
    assert files_of(tmp_path / "stopped", "out") == files_of(tmp_path / "undisturbed", "out")
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == ["out.bin", "out.idx", "out.json"]


def test_shards_of_another_tokenizer_or_another_file_are_not_taken(tmp_path: Path, tiny_tokenizer: Path) -> None:
    source = rows(tmp_path / "a.jsonl", ["one text", "no json follows"])
    with source.open("a") as file:
        file.write("{\n")
    bad = [str(rows(tmp_path / "first.jsonl", ["a first text"])), str(source)]
    with pytest.raises(ValueError, match=r"a\.jsonl line 3 is no JSON"):
        preprocess.write(bad, str(tmp_path / "out"), str(tiny_tokenizer))
    assert len(list((tmp_path / "out.shards").glob("[0-9]*.json"))) == 1
    rows(source, ["another text"])
    preprocess.write(bad, str(tmp_path / "out"), str(tiny_tokenizer), preprocess.Settings(seq_length=16))
    preprocess.write(bad, str(tmp_path / "new"), str(tiny_tokenizer), preprocess.Settings(seq_length=16))
    assert Corpus(tmp_path / "out").seq_length == 16 and not (tmp_path / "out.shards").exists()
    assert (tmp_path / "out.bin").read_bytes() == (tmp_path / "new.bin").read_bytes()


@pytest.fixture(scope="module")
def llama_tokenizer(tmp_path_factory: pytest.TempPathFactory, shared_data: Path, run_script: RunScript) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    model = shared_data / "llama/tokenizer.model"
    run_script("tools/build_tokenizer.py", "--tokenizer_model", model, "--output_dir", folder)
    return folder


def test_the_published_example(tmp_path: Path, run_script: RunScript, shared_data: Path, llama_tokenizer: Path) -> None:
    """Five sources written one by one, then merged into two types, two of them first, with the options as published."""
    for number in range(1, 6):
        run_script(
            SCRIPT, "--mode", "write", "--file_path", shared_data / f"knowlm/dataset{number}.txt",
            "--save_path", "data", "--save_prefix", f"dataset{number}", "--tokenizer_path", llama_tokenizer,
            "--language", "english" if number < 3 else "chinese", "--do_keep_newlines", "--do_split_sentences",
            "--seq_length", 1024, cwd=tmp_path,
        )  # fmt: skip
    run_script(
        SCRIPT, "--mode", "merge", "--merge_path_prefix", "['data/dataset1','data/dataset2']",
        "--merge_path_type", "[0,0]", "--new_path_prefix", "data/english", cwd=tmp_path,
    )  # fmt: skip
    names = [f"data/dataset{number}" for number in range(1, 6)]
    run_script(
        SCRIPT, "--mode", "merge", "--merge_path_prefix", str(names).replace(" ", ""),
        "--merge_path_type", "[0,0,1,1,1]", "--new_path_prefix", "data/dataset", cwd=tmp_path,
    )  # fmt: skip
    shown = run_script(SCRIPT, "--mode", "read", "--read_path_prefix", "data/dataset", cwd=tmp_path).stdout
    assert "dataset5" in shown
    corpus = verify(tmp_path / "data/dataset")
    assert [(source["name"], source["type"]) for source in corpus.sources] == [
        (f"dataset{number}", kind) for number, kind in enumerate([0, 0, 1, 1, 1], 1)
    ]
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(shared_data / "llama/tokenizer.model"))
    lines = [
        line
        for number in range(1, 6)
        for line in (shared_data / f"knowlm/dataset{number}.txt").read_bytes().decode().splitlines(keepends=True)
        if line.strip()
    ]
    assert document_ids(corpus) == [[1, *oracle.encode(line), 2] for line in lines]
    english = verify(tmp_path / "data/english")
    assert english.sidecar["tokens"] == corpus.sources[0]["tokens"] + corpus.sources[1]["tokens"]


@pytest.mark.parametrize("source", ["en", "zh", "code"])
def test_real_documents_are_exact(tmp_path: Path, shared_data: Path, llama_tokenizer: Path, source: str) -> None:
    path = shared_data / f"corpus/{source}.jsonl"
    preprocess.write([str(path)], str(tmp_path / source), str(llama_tokenizer))
    corpus = Corpus(tmp_path / source)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(shared_data / "llama/tokenizer.model"))
    texts = [json.loads(line)["text"] for line in path.open(encoding="utf-8")]
    assert document_ids(corpus) == [[1, *oracle.encode(text), 2] for text in texts]
    assert corpus.lengths.max() <= 1024
