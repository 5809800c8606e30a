"""corpus_inspection.py: `preprocess.py --mode read` shows the sources."""

import json
from pathlib import Path

import numpy as np
from conftest import RunScript
from corpora import rows
from corpus_building.corpus_build import build_corpus
from corpus_building.samples import CorpusSettings
from corpus_files.corpus import Corpus
from corpus_files.corpus_merging import merge_corpora

SCRIPT = "pretrain/preprocess.py"


def test_read_prints_statistics_of_each_source(tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path) -> None:
    for name, text in (("en", "A cat. " * 40), ("zh", "山水人家。")):
        texts = [text, text[:7]]
        file = rows(tmp_path / f"{name}.jsonl", texts)
        build_corpus([str(file)], str(tmp_path / name), str(tiny_tokenizer), CorpusSettings(seq_length=32))
    merge_corpora([str(tmp_path / "en"), str(tmp_path / "zh")], [0, 1], tmp_path / "all")
    corpus = Corpus(tmp_path / "all")
    shown = run_script(SCRIPT, "--mode", "read", "--read_path_prefix", tmp_path / "all").stdout
    for source in corpus.sources:
        lengths = corpus.lengths[source["start"] : source["end"]]
        columns = next(line.split() for line in shown.splitlines() if line.startswith(source["name"] + " "))
        assert columns[2:6] == [str(source[key]) for key in ("start", "end", "documents", "tokens")]
        assert columns[7:] == [
            f"{lengths.mean():.1f}", str(lengths.min()), str(int(np.sort(lengths)[(len(lengths) - 1) // 2])),
            str(lengths.max()), str(lengths.max()),
        ]  # fmt: skip


def test_read_from_another_folder_names_the_recorded_tokenizer(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path
) -> None:
    """The corpus was written with a relative --tokenizer_path; the counts need no tokenizer."""
    file = rows(tmp_path / "en.jsonl", ["A cat. " * 40])
    build_corpus([str(file)], str(tmp_path / "en"), str(tiny_tokenizer), CorpusSettings(seq_length=32))
    sidecar = tmp_path / "en.json"
    sidecar.write_text(sidecar.read_text().replace(str(tiny_tokenizer), "llama-13b"))
    command = (SCRIPT, "--mode", "read", "--read_path_prefix", tmp_path / "en")
    error = run_script(*command, status=2).stderr
    assert error.startswith(f"error: {tmp_path}/en was written with the tokenizer in llama-13b, which does not exist")
    assert run_script(*command, "--show", 0).stdout.splitlines()[-1].startswith("en ")


def test_read_of_a_corpus_without_recorded_tokenizer_asks_for_its_folder(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path
) -> None:
    file = rows(tmp_path / "en.jsonl", ["A cat. " * 40])
    build_corpus([str(file)], str(tmp_path / "en"), str(tiny_tokenizer), CorpusSettings(seq_length=32))
    sidecar = json.loads((tmp_path / "en.json").read_text())
    del sidecar["tokenizer"]["path"]
    (tmp_path / "en.json").write_text(json.dumps(sidecar))
    command = (SCRIPT, "--mode", "read", "--read_path_prefix", tmp_path / "en")
    error = run_script(*command, status=2).stderr
    assert f"{tmp_path}/en does not record the folder of its tokenizer; name" in error and "--tokenizer_path" in error
    assert "en sample 0, " in run_script(*command, "--tokenizer_path", tiny_tokenizer).stdout
