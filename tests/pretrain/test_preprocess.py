"""pretrain/preprocess.py: the modes, the published command lines, and errors for bad options."""

import gzip
import json
from pathlib import Path

import pytest
import sentencepiece
from conftest import RunScript, small_texts
from corpora import document_ids, files_of, rows
from corpus_building.corpus_build import build_corpus
from corpus_building.samples import CorpusSettings
from corpus_files.corpus import Corpus, verify_corpus
from corpus_tokenizer.document_encoder import CHECK_FIRST
from sentence_ends.sentence_boundaries import sentence_ends

SCRIPT = "pretrain/preprocess.py"


def test_documents_have_sentencepieces_ids_between_bos_and_eos(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path
) -> None:
    """The documents are in JSONL with another key, in text files and in .gz files; verify_corpus checks the sidecar."""
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
    corpus = verify_corpus(tmp_path / "out/all")
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tiny_tokenizer / "tokenizer.model"))
    truth = [*texts, "one", "two", "three", "four", "five"]
    assert document_ids(corpus) == [[1, *oracle.encode(text), 2] for text in truth]
    assert corpus.lengths.max() <= 64
    assert f"{len(truth)} documents" in done.stdout and ", 1 document dropped, " in done.stdout
    dropped = [json.loads(line) for line in (tmp_path / "out/all.dropped.jsonl").open()]
    assert dropped == [{"file": str(tmp_path / "b.txt"), "line": 3, "reason": "no text", "text": ""}]
    assert corpus.sources == [
        {
            "name": "all", "type": 0, "start": 0, "end": len(corpus),
            "documents": len(truth), "tokens": int(corpus.lengths.sum()),
        }
    ]  # fmt: skip
    # The first documents of a.jsonl, and the five documents of the other files.
    assert corpus.sidecar["settings"]["self_checked_documents"] == CHECK_FIRST + 5


def test_samples_end_at_sentence_ends_and_are_balanced(tmp_path: Path, tiny_tokenizer: Path) -> None:
    text = "".join(small_texts(200))
    source = rows(tmp_path / "a.jsonl", [text])
    build_corpus([str(source)], str(tmp_path / "a"), str(tiny_tokenizer), CorpusSettings(seq_length=128))
    corpus = Corpus(tmp_path / "a")
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tiny_tokenizer / "tokenizer.model"))
    ends, at = set(sentence_ends(text)), ""
    for sample in corpus:
        at += oracle.decode([5, *sample.tolist()])[len(oracle.decode([5])) :]  # piece 5 keeps the leading space
        assert len(at.lstrip()) in ends | {len(text)} or len(at) in ends
    assert at.strip() == text
    assert corpus.lengths.min() > 64  # balanced: the last sample is not short


def test_do_keep_newlines_keeps_the_newline_of_each_line(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path
) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo")
    run_script(
        SCRIPT, "--mode", "write", "--file_path", tmp_path / "a.txt", "--save_prefix", tmp_path / "a",
        "--tokenizer_path", tiny_tokenizer, "--do_keep_newlines", "--do_split_sentences", "--language", "english",
    )  # fmt: skip
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tiny_tokenizer / "tokenizer.model"))
    assert document_ids(Corpus(tmp_path / "a")) == [[1, *oracle.encode(text), 2] for text in ("one\n", "two")]


def test_merge_accepts_lists_in_both_notations_and_read_shows_samples(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path
) -> None:
    """--mode read refuses another tokenizer."""
    for name, text in (("en", "A cat."), ("zh", "山水人家。")):
        build_corpus([str(rows(tmp_path / f"{name}.jsonl", [text]))], str(tmp_path / name), str(tiny_tokenizer))
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
    assert "agree with the sidecar" in verified
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


@pytest.fixture(scope="module")
def one_row(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows(tmp_path_factory.mktemp("in") / "a.jsonl", ["some text"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--mode write", "--mode write needs --file_path"),
        ("--mode merge --merge_path_prefix a", "--mode merge needs --new_path_prefix"),
        ("--mode read", "--mode read needs --read_path_prefix"),
        ("--mode read --read_path_prefix no/x", "no/x.json does not exist; give a corpus by its prefix"),
        ("--mode write --file_path no*.txt --save_prefix o --tokenizer_path T", "no*.txt matches no file"),
        ("--mode write --file_path a.txt --save_prefix o --tokenizer_path no", "no is not a folder"),
        ("--mode write --file_path . --save_prefix o --tokenizer_path T", ". is not a file"),
        ("--mode write --file_path a.md --save_prefix o --tokenizer_path T", "a.md is not .jsonl, .json, .txt"),
        ("--mode write --seq_len 9", "unknown option --seq_len; did you mean --seq_length?"),
        ("--mode write --seq_length 7", "--seq_length: '7' is not a whole number of 8 or more"),
        ("--mode read --read_path_prefix c --file_path a.txt", "--file_path has no effect with --mode read; remove it"),
        ("--mode verify --read_path_prefix c --show 3", "--show has no effect with --mode verify"),
        (
            "--mode merge --merge_path_prefix a,b --new_path_prefix o --num_workers 2",
            "--num_workers has no effect with --mode merge",
        ),
        (
            "--mode write --file_path a.txt --save_prefix o --tokenizer_path T --new_path_prefix n",
            "--new_path_prefix has no effect with --mode write",
        ),
        (
            "--mode write --file_path a.txt --save_prefix o --tokenizer_path T --slurm_partition cpu",
            "--slurm_partition has no effect with --executor local; give --executor slurm or remove it",
        ),
        ("--mode build", "invalid choice: 'build'"),
        (
            "--mode merge --merge_path_prefix ['open'('x')] --new_path_prefix o",
            "--merge_path_prefix takes a list of text",
        ),
        ("--mode merge --merge_path_prefix a,b --merge_path_type 0,-1 --new_path_prefix o", "-1"),
    ],
)
def test_bad_option_gives_one_error_line_and_writes_no_file(
    tmp_path: Path, run_script: RunScript, options: str, message: str
) -> None:
    for name in ("a.txt", "a.md"):
        (tmp_path / name).write_text("x")
    done = run_script(SCRIPT, *options.split(), status=2, cwd=tmp_path)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "a.md"}


def test_existing_corpus_is_replaced_only_with_overwrite(
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


@pytest.fixture(scope="module")
def llama_tokenizer(tmp_path_factory: pytest.TempPathFactory, shared_data: Path, run_script: RunScript) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    model = shared_data / "llama/tokenizer.model"
    run_script("tools/build_tokenizer.py", "--tokenizer_model", model, "--output_dir", folder)
    return folder


@pytest.mark.integration
def test_published_command_lines_write_and_merge_five_sources(
    tmp_path: Path, run_script: RunScript, shared_data: Path, llama_tokenizer: Path
) -> None:
    """Five sources, merged into two types, with the published options."""
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
    corpus = verify_corpus(tmp_path / "data/dataset")
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
    english = verify_corpus(tmp_path / "data/english")
    assert english.sidecar["tokens"] == corpus.sources[0]["tokens"] + corpus.sources[1]["tokens"]


@pytest.mark.integration
@pytest.mark.parametrize("source", ["en", "zh", "code"])
def test_real_documents_have_sentencepieces_ids(
    tmp_path: Path, shared_data: Path, llama_tokenizer: Path, source: str
) -> None:
    path = shared_data / f"corpus/{source}.jsonl"
    build_corpus([str(path)], str(tmp_path / source), str(llama_tokenizer))
    corpus = Corpus(tmp_path / source)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(shared_data / "llama/tokenizer.model"))
    texts = [json.loads(line)["text"] for line in path.open(encoding="utf-8")]
    assert document_ids(corpus) == [[1, *oracle.encode(text), 2] for text in texts]
    assert corpus.lengths.max() <= 1024
