"""corpus_build.py, documents.py, samples.py: kinds of input, shards, interrupted runs, and samples per document."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from conftest import REPOSITORY, RunScript, small_texts
from corpora import document_ids, files_of, rows, texts_of
from corpus_building.corpus_build import build_corpus
from corpus_building.samples import CorpusSettings, choose_samples
from corpus_files.corpus import Corpus, verify_corpus
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

SCRIPT = "pretrain/preprocess.py"


@pytest.mark.integration
def test_corpus_is_equal_for_any_number_of_workers(tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path) -> None:
    """Every file, the sidecar included, is equal to the byte; the documents are more than a batch."""
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"content": "x"}\n',
            "a.jsonl:1 has no key 'text'; name the key of the text with --text_key; the row has: content",
        ),
        (b'{"text": "x"}\nno json\n', "a.jsonl:2 is not JSON (Expecting value at 'no json'); correct it"),
        (b'[{"text": "x"}]\n', "is a JSON list; each line must be one JSON object"),
        (b'{"text": "x", "n": ' + b"9" * 5000 + b"}\n", "a.jsonl:1 has an integer of more than 4300 digits"),
        (b'"text"\n', "a.jsonl:1 is not a JSON object"),
        (b'{"text": 5}\n', "has int under 'text', not text"),
        (b'{"text": "\\ud800"}\n', "half a surrogate pair"),
        (b'{"text": "\xff"}\n', "a.jsonl:1 is not UTF-8 (byte 0xff); convert the file to UTF-8"),
        (b"", "no document to write"),
        (b"\n  \n", "no document to write"),
    ],
)
def test_bad_input_raises_an_error_of_one_line_and_leaves_no_file(
    tmp_path: Path, tiny_tokenizer: Path, content: bytes, message: str
) -> None:
    """The error names the place; neither the corpus nor its folder is left."""
    (tmp_path / "a.jsonl").write_bytes(content)
    for workers in (1, 2):
        with pytest.raises(ValueError) as raised:
            build_corpus([str(tmp_path / "a.jsonl")], str(tmp_path / "out/a"), str(tiny_tokenizer), num_workers=workers)
        assert message in str(raised.value) and "\n" not in str(raised.value)
        assert not (tmp_path / "out").exists()


def packed(data: bytes) -> bytes:
    """Return a Zstandard archive of two frames, as parallel compressors write it."""
    codec = pyarrow.Codec("zstd")
    half = data.index(b"\n", len(data) // 2) + 1
    return b"".join(codec.compress(part).to_pybytes() for part in (data[:half], data[half:]))


def test_damaged_archive_raises_error_with_its_name(tmp_path: Path, tiny_tokenizer: Path) -> None:
    rows_of_text = b'{"text": "x"}\n' * 5000
    for ending, whole in (("gz", gzip.compress(rows_of_text)), ("zst", packed(rows_of_text))):
        (tmp_path / f"whole.jsonl.{ending}").write_bytes(whole)
        build_corpus([str(tmp_path / f"whole.jsonl.{ending}")], str(tmp_path / ending), str(tiny_tokenizer))
        assert Corpus(tmp_path / ending).sidecar["documents"] == 5000
        for name, data in (("cut", whole[:-20]), ("not", b"plain"), ("bits", whole[:40] + b"x" * 40)):
            path = tmp_path / f"{name}.jsonl.{ending}"
            path.write_bytes(data)
            with pytest.raises(ValueError, match=rf"{path.name}:\d+ cannot be read, since the file is damaged"):
                build_corpus([str(path)], str(tmp_path / "out"), str(tiny_tokenizer))
    assert not list(tmp_path.glob("out*"))


def test_text_template_joins_fields_and_keeps_their_braces(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path
) -> None:
    """JSONL and parquet give the same text."""
    table = [{"title": "A {body} of {0}", "body": "says {title}", "n": 1}, {"title": "", "body": "Two.", "n": 2}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "a.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "a.0.parquet")
    for ending in ("jsonl", "0.parquet"):
        run_script(
            SCRIPT, "--mode", "write", "--file_path", tmp_path / f"a.{ending}", "--save_prefix", tmp_path / ending,
            "--tokenizer_path", tiny_tokenizer, "--text_template", "{title}\\n{body}",
        )  # fmt: skip
        assert texts_of(tmp_path / ending, tiny_tokenizer) == ["A {body} of {0}\nsays {title}", "\nTwo."]
        for template, message in (("{title} {gone}", "1 has no key 'gone'"), ("{n}", "1 has int under 'n', not text")):
            refused = run_script(
                SCRIPT, "--mode", "write", "--file_path", tmp_path / f"a.{ending}", "--save_prefix", tmp_path / "no",
                "--tokenizer_path", tiny_tokenizer, "--text_template", template, status=2,
            )  # fmt: skip
            place = f"a.{ending}" + (":" if ending == "jsonl" else ", row ")
            assert place + message in refused.stderr and refused.stderr.count("\n") == 1
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cut\.parquet, row 1 cannot be read, since the file is damaged"):
        build_corpus([str(tmp_path / "cut.parquet")], str(tmp_path / "no"), str(tiny_tokenizer))
    assert not list(tmp_path.glob("no*"))


def test_on_error_skip_drops_unreadable_lines_and_records_them(tmp_path: Path, tiny_tokenizer: Path) -> None:
    lines = [b'{"text": "one"}', b"no json", b'{"text": "\xff"}', b'{"text": 5}', b"", b'{"text": "nul\\u0000"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "two"}\n' * 3)[:-3])
    (tmp_path / "c.txt").write_bytes(b"three\n")
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl.gz", "c.txt")]
    settings = CorpusSettings(on_error="skip")
    build_corpus(files, str(tmp_path / "out"), str(tiny_tokenizer), settings, num_workers=2)
    assert [text for text in texts_of(tmp_path / "out", tiny_tokenizer) if text != "two"] == ["one", "nul\x00", "three"]
    dropped = [json.loads(line) for line in (tmp_path / "out.dropped.jsonl").open()]
    assert [(Path(row["file"]).name, row["line"]) for row in dropped][:4] == [("a.jsonl", n) for n in (2, 3, 4, 5)]
    assert "is damaged" in dropped[4]["reason"] and len(dropped) == 5


@pytest.mark.integration
def test_corpus_is_equal_for_any_shard_size(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """Tokens, samples and dropped lines are equal even for shards of one byte; errors have line numbers of the file."""
    texts = [*small_texts(20), " ", "山水。" * 40, "", "end"]
    source = rows(tmp_path / "a.jsonl", texts)
    settings = CorpusSettings(seq_length=32, min_length=4)
    for size in (1, 7, 300, 1000, 10**9):
        build_corpus([str(source)], str(tmp_path / f"{size}"), str(tiny_tokenizer), settings, shard_bytes=size)
        for ending in ("bin", "idx", "dropped.jsonl"):
            assert (tmp_path / f"{size}.{ending}").read_bytes() == (tmp_path / f"1.{ending}").read_bytes()
    with source.open("a") as file:
        file.write('{"text": 5}\n{"text": "last"}')
    with pytest.raises(ValueError, match=rf"a\.jsonl:{len(texts) + 1} has int under 'text'"):
        build_corpus([str(source)], str(tmp_path / "bad"), str(tiny_tokenizer), shard_bytes=200)


def test_full_disk_gives_one_error_line_and_leaves_no_file(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path
) -> None:
    """A limit of the file size stands in for a full disk: writing fails with the same kind of error."""
    source = rows(tmp_path / "a.jsonl", small_texts(6000))
    command = f"ulimit -f 64; exec {sys.executable} {REPOSITORY / SCRIPT} --mode write --file_path {source} " + (
        f"--save_prefix {tmp_path}/out/a --tokenizer_path {tiny_tokenizer}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (
        done.returncode == 2
        and "out/a.shards/000000 could not be written (File too large); free space there" in done.stderr
    )
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.integration
@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_stopped_run_ends_its_workers_and_resumes_from_finished_shards(
    tmp_path: Path, tiny_tokenizer: Path, kill: signal.Signals
) -> None:
    """Workers end, finished shards stay, and the same command then writes the same bytes as an undisturbed run.

    SIGTERM and SIGINT are sent to the process group, workers included.
    """
    big = rows(tmp_path / "big.jsonl", [f"{number} many words, " * 2500 for number in range(400)])
    first = rows(tmp_path / "a.jsonl", small_texts(200))

    def command(prefix: str, workers: int) -> list[str]:
        return [
            sys.executable, str(REPOSITORY / SCRIPT), "--mode", "write", "--save_prefix", f"{tmp_path / prefix}/out",
            "--tokenizer_path", str(tiny_tokenizer), "--num_workers", str(workers), "--shard_megabytes", "1",
            "--file_path", str(first), str(big),
        ]  # fmt: skip

    process = subprocess.Popen(command("stopped", 2), stderr=subprocess.PIPE, text=True, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    shards = tmp_path / "stopped/out.shards"
    while not (shards / "000000.json").exists():
        time.sleep(0.01)
    (os.kill if kill == signal.SIGKILL else os.killpg)(process.pid, kill)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[kill]
    line = "interrupted; finished shards are kept, and the same command resumes\n"
    assert stderr == ("" if kill == signal.SIGKILL else line)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("worker processes still run")
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


@pytest.mark.slow
def test_corpus_is_equal_after_thirty_kills(tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path) -> None:
    """The runs, with one to three workers, are killed at random times, also during start-up and joining."""
    source = rows(tmp_path / "a.jsonl", [f"{number} many words. " * 2000 for number in range(300)])
    command = [
        SCRIPT, "--mode", "write", "--file_path", source, "--save_prefix", "out", "--tokenizer_path", tiny_tokenizer,
        "--shard_megabytes", 1,
    ]  # fmt: skip
    for folder in ("killed", "undisturbed"):
        (tmp_path / folder).mkdir()
    run_script(*command, cwd=tmp_path / "undisturbed")
    draw = random.Random(7)
    for _ in range(30):
        whole = [sys.executable, REPOSITORY / SCRIPT, *command[1:], "--num_workers", draw.randint(1, 3), "--overwrite"]
        process = subprocess.Popen(list(map(str, whole)), cwd=tmp_path / "killed", stderr=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=draw.uniform(0.3, 4))
        process.kill()
        process.wait()
    run_script(*command, "--num_workers", 2, "--overwrite", cwd=tmp_path / "killed")
    assert files_of(tmp_path / "killed", "out") == files_of(tmp_path / "undisturbed", "out")


@pytest.mark.slow
def test_time_is_linear_in_the_length_of_a_document(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path
) -> None:
    """One document of 40 MB takes less than twice the time of ten documents of 4 MB."""
    seconds = {}
    for name, texts in (
        ("one", ["Some words, and more. " * 1_800_000]),
        ("ten", ["Some words, and more. " * 180_000] * 10),
    ):
        source = rows(tmp_path / f"{name}.jsonl", texts)
        begun = time.perf_counter()
        run_script(
            SCRIPT, "--mode", "write", "--file_path", source, "--save_prefix", tmp_path / name,
            "--tokenizer_path", tiny_tokenizer,
        )  # fmt: skip
        seconds[name] = time.perf_counter() - begun
    assert seconds["one"] < 2 * seconds["ten"]


def test_shards_of_other_settings_or_changed_files_are_written_again(tmp_path: Path, tiny_tokenizer: Path) -> None:
    source = rows(tmp_path / "a.jsonl", ["one text", "no json follows"])
    with source.open("a") as file:
        file.write("{\n")
    bad = [str(rows(tmp_path / "first.jsonl", ["a first text"])), str(source)]
    with pytest.raises(ValueError, match=r"a\.jsonl:3 is not JSON"):
        build_corpus(bad, str(tmp_path / "out"), str(tiny_tokenizer))
    assert len(list((tmp_path / "out.shards").glob("[0-9]*.json"))) == 1
    rows(source, ["another text"])
    build_corpus(bad, str(tmp_path / "out"), str(tiny_tokenizer), CorpusSettings(seq_length=16))
    build_corpus(bad, str(tmp_path / "new"), str(tiny_tokenizer), CorpusSettings(seq_length=16))
    assert Corpus(tmp_path / "out").seq_length == 16 and not (tmp_path / "out.shards").exists()
    assert (tmp_path / "out.bin").read_bytes() == (tmp_path / "new.bin").read_bytes()


def test_shard_without_sidecar_of_a_killed_run_is_written_again(tmp_path: Path, tiny_tokenizer: Path) -> None:
    first, second = rows(tmp_path / "a.jsonl", ["one text"]), tmp_path / "b.jsonl"
    second.write_text("{\n")
    with pytest.raises(ValueError, match=r"b\.jsonl:1 is not JSON"):
        build_corpus([str(first), str(second)], str(tmp_path / "out"), str(tiny_tokenizer))
    (tmp_path / "out.shards/000000.json").unlink()
    assert (tmp_path / "out.shards/000000.idx").is_file()
    rows(second, ["another text"])
    build_corpus([str(first), str(second)], str(tmp_path / "out"), str(tiny_tokenizer))
    assert texts_of(tmp_path / "out", tiny_tokenizer) == ["one text", "another text"]
    assert not (tmp_path / "out.shards").exists()


def test_interrupted_run_starts_again_with_a_tokenizer_that_has_another_eos(
    tmp_path: Path, tiny_tokenizer: Path
) -> None:
    """All documents end with the EOS of the second tokenizer."""
    other = shutil.copytree(tiny_tokenizer, tmp_path / "other")
    config = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<unk>"}))
    first, second = rows(tmp_path / "a.jsonl", ["one text"]), tmp_path / "b.jsonl"
    second.write_text("{\n")
    with pytest.raises(ValueError, match=r"b\.jsonl:1 is not JSON"):
        build_corpus([str(first), str(second)], str(tmp_path / "out"), str(tiny_tokenizer))
    rows(second, ["another text"])
    build_corpus([str(first), str(second)], str(tmp_path / "out"), str(other))
    assert [ids[-1] for ids in document_ids(Corpus(tmp_path / "out"))] == [0, 0]


@given(st.text(max_size=20), st.integers(2, 40), st.integers(1, 39), st.integers(0, 3))
def test_chosen_samples_include_first_and_last_and_are_reproducible(
    text: str, samples: int, keep: int, seed: int
) -> None:
    if keep < samples:
        found = choose_samples(text, samples, keep, seed)
        assert len(found) == keep and all(a < b for a, b in pairwise(found)) and found[0] == 0
        assert keep == 1 or found[-1] == samples - 1
        assert found == choose_samples(text, samples, keep, seed)


@pytest.mark.integration
def test_num_per_doc_keeps_the_same_samples_for_any_number_of_workers(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path
) -> None:
    """Another seed selects other samples; the number of removed samples is recorded."""
    texts = ["".join(small_texts(80)[at:]) for at in range(4)] + ["short"]
    source = rows(tmp_path / "a.jsonl", texts)
    build_corpus([str(source)], str(tmp_path / "all"), str(tiny_tokenizer), CorpusSettings(seq_length=32))
    whole = Corpus(tmp_path / "all")
    results = {}
    for name, seed, workers in (("x", 0, 1), ("y", 0, 2), ("z", 1, 1)):
        run_script(
            SCRIPT, "--mode", "write", "--file_path", source, "--save_path", tmp_path / name, "--save_prefix", "few",
            "--tokenizer_path", tiny_tokenizer, "--seq_length", 32, "--num_per_doc", 4, "--seed", seed,
            "--num_workers", workers,
        )  # fmt: skip
        few = results[name] = verify_corpus(tmp_path / name / "few")
        assert np.diff(few.documents).tolist() == [4, 4, 4, 4, 1]
        for (a, b), (c, d) in zip(pairwise(whole.documents), pairwise(few.documents), strict=True):
            kept, samples = [few[i].tolist() for i in range(c, d)], [whole[i].tolist() for i in range(a, b)]
            assert kept[0] == samples[0] and kept[-1] == samples[-1] and all(ids in samples for ids in kept)
        noted = [json.loads(line)["reason"] for line in (tmp_path / name / "few.dropped.jsonl").open()]
        had = np.diff(whole.documents)[:4]
        assert noted == [f"{count - 4} of {count} samples, num_per_doc is 4" for count in had]
        assert few.sidecar["dropped"] == 0
    assert results["x"].sidecar["sha256"] == results["y"].sidecar["sha256"] != results["z"].sidecar["sha256"]
