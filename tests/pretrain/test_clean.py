"""pretrain/clean.py: dropped and kept documents, the report, and interrupted runs."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from conftest import REPOSITORY, RunScript
from corpora import rows
from corpus_building import corpus_build
from corpus_building.documents import Shard, TextSource
from corpus_files.corpus import Corpus
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.filters import GopherRepetitionFilter
from partial_folders import resume_journal
from pyarrow import parquet
from text_cleaning import cleaning_report, cleaning_rules, cleaning_run
from text_cleaning.cleaning_io import CleaningPlan, divide_into_tasks

SCRIPT = "pretrain/clean.py"
NAMES = (
    "river market window teacher garden letter engine winter village doctor bridge harvest forest station library "
    "captain kitchen journey weather history picture soldier question answer music island mountain servant council"
)
ENGLISH, LITTLE = NAMES.split(" "), ["the", "of", "and", "to", "with", "that", "in", "a", "have", "be"]
CHINESE = "山水城市学生老师工厂农民文章历史经济技术火车天气花园河流机器医生朋友孩子房屋道路电影音乐语言书本报纸问题办法"


def english(seed: int, sentences: int = 14) -> str:
    draw = random.Random(seed)
    made = []
    for _ in range(sentences):
        words = [w for _ in range(7) for w in (draw.choice(LITTLE), draw.choice(ENGLISH))]
        made.append(f"{' '.join(words).capitalize()}, {draw.randrange(2000)}.")
    return " ".join(made)


def chinese(seed: int, sentences: int = 14) -> str:
    draw = random.Random(seed)
    return "".join(
        f"{''.join(draw.choices(CHINESE, k=6))}的{''.join(draw.choices(CHINESE, k=5))}是在{draw.randrange(2000)}年，"
        f"我们不知道{''.join(draw.choices(CHINESE, k=7))}和{''.join(draw.choices(CHINESE, k=6))}了。"
        for _ in range(sentences)
    )


def code(seed: int, functions: int = 8) -> str:
    draw = random.Random(seed)
    made = []
    for _ in range(functions):
        a, b, c = draw.sample(ENGLISH, 3)
        made.append(
            f"def {a}_{b}({c}, {draw.choice('xyz')}={draw.randrange(99)}):\n"
            f"    {b} = [{c}.{a} for {a} in {c}.{draw.choice(ENGLISH)}()]\n    return {b}[{draw.randrange(9)}:]\n"
        )
    return "\n".join(made)


def kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.glob("0*.jsonl")) for line in file.open(encoding="utf-8")]


def dropped(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "report/dropped.jsonl").open(encoding="utf-8")]


def result(folder: Path) -> dict[str, Any]:
    """Return the content of each output file by name."""
    return {path.name: path.read_bytes() for path in folder.rglob("*.*")}


def test_first_of_duplicates_is_kept_in_input_order(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path
) -> None:
    """A corpus of all .jsonl files of the output folder has exactly the kept documents."""
    first = [english(1), chinese(1), english(2), chinese(2), english(3)]
    near = [english(1).replace(" the ", " this ", 1), chinese(2).replace("了。", "呢。", 1)]
    a = rows(tmp_path / "a.jsonl", [*first, f"  {english(2)}\n\n"])
    b = rows(tmp_path / "b.jsonl", [near[0], chinese(1), english(4), near[1]])
    out = tmp_path / "out"
    run_script(SCRIPT, "--file_path", a, b, "--output_dir", out)
    assert [row["text"] for row in kept(out)] == [*first, english(4)]
    gone = [(Path(d["file"]).name, d["line"], d["reason"]) for d in dropped(out)]
    assert gone == [
        ("a.jsonl", 6, "same_text"), ("b.jsonl", 1, "similar_text"), ("b.jsonl", 2, "same_text"),
        ("b.jsonl", 4, "similar_text"),
    ]  # fmt: skip
    assert [d["similar_to"]["line"] for d in dropped(out) if "similar_to" in d] == [1, 4]
    report = json.loads((out / "report/report.json").read_text())
    assert report["totals"]["read"] == 10 == report["totals"]["kept"] + report["totals"]["dropped"]
    assert report["files"][str(b)]["reasons"]["minhash: similar_text"]["documents"] == 2
    assert report["totals"]["bytes_kept"] == sum(len(row["text"].encode()) for row in kept(out))
    assert report["languages"]["zh"]["kept"] == 2 and "b.jsonl:4, like " in (out / "report/report.md").read_text()
    assert not (tmp_path / "out.partial").exists()
    corpus_build.build_corpus([f"{out}/*.jsonl"], str(tmp_path / "corpus"), str(tiny_tokenizer))
    assert Corpus(tmp_path / "corpus").sidecar["documents"] == 6


def test_language_code_applies_the_rules_of_code(tmp_path: Path, run_script: RunScript) -> None:
    data = f"table = [{', '.join(map(str, range(900)))}]\n"
    source = rows(tmp_path / "a.jsonl", [code(1), data, code(2), code(1).replace("return", "yield", 1), code(2)])
    run_script(SCRIPT, "--file_path", source, "--output_dir", tmp_path / "out", "--language", "code")
    assert [row["text"] for row in kept(tmp_path / "out")] == [code(1), code(2)]
    assert [d["reason"] for d in dropped(tmp_path / "out")] == ["code_long_line", "similar_text", "same_text"]


@pytest.mark.integration
def test_poor_and_repeated_text_is_dropped_and_verse_is_kept(tmp_path: Path, run_script: RunScript) -> None:
    good = [
        "Look before you leap.\n\t\t-- Samuel Butler",
        "微阳下乔木，远色隐秋山。",
        "床前明月光，\n疑是地上霜。\n举头望明月，\n低头思故乡。",
    ]
    poor = [
        "Buy now!",
        "谢谢",
        "We sell it. " * 60,
        "很好的商品我很喜欢。" * 30,
        "| 12 | 7 | 9 | = | 33 | % | 8 |\n" * 3,
    ]
    source = rows(tmp_path / "a.jsonl", good + poor)
    run_script(SCRIPT, "--file_path", source, "--output_dir", tmp_path / "out")
    assert [row["text"] for row in kept(tmp_path / "out")] == good
    assert {d["filter"] for d in dropped(tmp_path / "out")} == {"quality", "repetition"}  # the names of --skip
    run_script(SCRIPT, "--file_path", source, "--output_dir", tmp_path / "all", "--skip", "quality,repetition")
    assert len(kept(tmp_path / "all")) == 8


@pytest.mark.integration
def test_word_lists_drop_offers_and_keep_a_mention(tmp_path: Path, run_script: RunScript) -> None:
    spam = "本公司代开发票，代办文凭，刻章办证，价格优惠，电话联系，代开发票请找我们。"
    ham = f"{chinese(7)}警方提醒，网上的代开发票广告是骗局。"
    advert = "Visit our online casinos, the best online casino bonus and casino bonus code, play slots online for you."
    source = rows(tmp_path / "a.jsonl", [spam, ham, advert, english(5), "the purple zebra of the purple zebra and you"])
    run_script(SCRIPT, "--file_path", source, "--output_dir", tmp_path / "out")
    gone = [(d["line"], d["filter"], d["reason"]) for d in dropped(tmp_path / "out")]
    assert gone == [(1, "harm", "offer"), (3, "harm", "offer")]
    assert "harm: offer" in (tmp_path / "out/report/report.md").read_text()
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/english.txt").write_text("# ours\nPurple zebra\n")
    own = ["--word_lists", tmp_path / "lists", "--output_dir", tmp_path / "own"]
    run_script(SCRIPT, "--file_path", source, *own)
    assert [(d["line"], d["reason"]) for d in dropped(tmp_path / "own")] == [(5, "keyword_list")]


def test_all_kinds_of_input_keep_the_other_fields_of_a_row(tmp_path: Path, run_script: RunScript) -> None:
    texts = [english(seed) for seed in range(6)]
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": 7, "rank": "x", "title": "Tea", "body": texts[0]}) + "\n")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps({"title": "Salt", "body": texts[1], "odd": "\ud800", "big": 10**30}) + "\n")
    table = pyarrow.table({"body": texts[2:4], "title": ["Ink", "Oil"], "score": [0.5, None]})
    parquet.write_table(table, tmp_path / "c.parquet")
    run_script(
        SCRIPT, "--file_path", tmp_path / "*.*", "--output_dir", tmp_path / "out", "--text_template", r"{title}\n{body}"
    )
    assert kept(tmp_path / "out") == [
        {"text": f"Tea\n{texts[0]}", "id": 7, "rank": "x"},
        {"text": f"Salt\n{texts[1]}", "odd": "\ud800", "big": 10**30},
        {"text": f"Ink\n{texts[2]}", "score": 0.5},
        {"text": f"Oil\n{texts[3]}", "score": None},
    ]


@pytest.mark.integration
def test_unreadable_line_is_an_error_or_is_dropped_with_on_error_skip(tmp_path: Path, run_script: RunScript) -> None:
    source = rows(tmp_path / "a.jsonl", [english(1), chinese(1)])
    with source.open("ab") as file:
        file.write(b'{"text": 5}\n\n{"text"\n\xff\n')
    for workers in (1, 2):
        stopped = run_script(
            SCRIPT, "--file_path", source, "--output_dir", tmp_path / "out", "--num_workers", workers, status=2
        )
        assert stopped.stderr == f"error: {source}:3 has int under 'text', not text; correct or remove that line\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    run_script(SCRIPT, "--file_path", source, "--output_dir", tmp_path / "out", "--on_error", "skip")
    assert len(kept(tmp_path / "out")) == 2
    assert [(d["line"], d["reason"]) for d in dropped(tmp_path / "out")] == [
        (3, "unreadable"), (4, "no text"), (5, "unreadable"), (6, "unreadable"),
    ]  # fmt: skip
    assert "is not UTF-8" in dropped(tmp_path / "out")[3]["text"]


@pytest.mark.integration
def test_wrong_line_of_a_later_task_leaves_nothing_of_the_run(tmp_path: Path, run_script: RunScript) -> None:
    """Finished tasks are removed, too, since the corrected file would give other tasks."""
    (tmp_path / "a.txt").write_text("x" * 1_500_000)
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"txt": "three"}\n')
    sources, out = (tmp_path / "a.txt", tmp_path / "b.jsonl"), tmp_path / "out"
    stopped = run_script(SCRIPT, "--file_path", *sources, "--output_dir", out, "--task_megabytes", 1, status=2)
    assert stopped.stderr.startswith(f"error: {tmp_path}/b.jsonl:3 has no key 'text'; ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.jsonl"]


@pytest.fixture(scope="module")
def several_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two files of 3 MB in total: four tasks, with duplicates within and across tasks."""
    folder = tmp_path_factory.mktemp("several")
    texts = [made(seed % 400, 22) for seed in range(440) for made in (english, chinese, code)]
    rows(folder / "a.jsonl", texts[: len(texts) // 2])
    rows(folder / "b.jsonl", [text.replace("return", "yield", 1) for text in texts[len(texts) // 2 :]])
    return folder


def command(source: Path, out: Path, workers: int) -> list[str]:
    return [
        sys.executable, str(REPOSITORY / SCRIPT), "--file_path", f"{source}/*.jsonl", "--output_dir", str(out),
        "--task_megabytes", "1", "--num_workers", str(workers), "--skip", "repetition",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(several_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    subprocess.run(command(several_tasks, out, 1), check=True, capture_output=True)
    assert len(list(out.glob("0*.jsonl"))) >= 3 and len({d["reason"] for d in dropped(out)}) >= 2
    return result(out)


@pytest.mark.integration
def test_result_is_equal_for_any_number_of_workers_and_after_a_kill(
    tmp_path: Path, several_tasks: Path, undisturbed: dict[str, Any]
) -> None:
    """The first process is killed; its two workers then end. A second run finishes with three workers."""
    out = tmp_path / "out"
    process = subprocess.Popen(command(several_tasks, out, 2), stderr=subprocess.PIPE, start_new_session=True)
    done = tmp_path / "out.partial/logs/filter/completions"
    while not any(done.glob("*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while True:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline, "worker processes still run"
        time.sleep(0.05)
    assert not out.exists()
    before = {path: path.stat().st_mtime_ns for path in done.iterdir()}
    again = subprocess.Popen(command(several_tasks, out, 3), stderr=subprocess.PIPE)
    while again.poll() is None:
        for path, modified in before.items():
            try:
                assert path.stat().st_mtime_ns == modified
            except FileNotFoundError:
                assert again.wait() == 0  # removed at the end
        time.sleep(0.05)
    assert again.returncode == 0
    assert result(out) == undisturbed


@pytest.mark.integration
def test_run_with_other_settings_starts_again_and_existing_output_needs_overwrite(
    tmp_path: Path, run_script: RunScript
) -> None:
    source = rows(tmp_path / "a.jsonl", [english(1), "Buy now!", "no json follows"])
    with source.open("a") as file:
        file.write("{\n")
    out = tmp_path / "out"
    arguments = ["--file_path", source, "--output_dir", out]
    run_script(SCRIPT, *arguments, status=2)
    run_script(SCRIPT, *arguments, "--on_error", "skip", "--skip", "quality")
    assert len(kept(out)) == 3
    again = run_script(SCRIPT, *arguments, "--on_error", "skip", status=2)
    assert again.stderr == f"error: {out} exists; name another --output_dir, or replace it with --overwrite\n"
    run_script(SCRIPT, *arguments, "--on_error", "skip", "--overwrite")
    assert len(kept(out)) == 1 and not (tmp_path / "out.partial").exists()
    (tmp_path / "mine").mkdir()
    other = run_script(SCRIPT, "--file_path", source, "--output_dir", tmp_path / "mine", "--overwrite", status=2)
    assert "clean.py did not write it" in other.stderr and (tmp_path / "mine").is_dir()


@pytest.mark.parametrize(
    "wrong, says",
    [
        (["--skip", "harm,speed"], "--skip: speed is not one of quality, repetition"),
        (["--text_template", "title"], "names no field"),
        (["--word_lists", "nowhere"], "nowhere has neither an en.txt nor a zh.txt with phrases"),
        (["--num_workers", "0"], "'0' is not a whole number of 1 or more"),
        (["--lang", "code"], "unknown option --lang; did you mean --language?"),
        (["--executor", "slurm"], "--executor slurm needs --slurm_partition"),
        (["--slurm_option", "account"], "--slurm_option account is not KEY=VALUE"),
    ],
)
def test_bad_option_gives_one_error_line(tmp_path: Path, run_script: RunScript, wrong: list[str], says: str) -> None:
    source = rows(tmp_path / "a.jsonl", [english(1)])
    done = run_script(SCRIPT, "--file_path", source, "--output_dir", tmp_path / "out", *wrong, status=2)
    assert says in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.integration
def test_over_85_percent_of_the_real_corpus_is_kept(tmp_path: Path, run_script: RunScript, shared_data: Path) -> None:
    text = tmp_path / "text.jsonl"
    for name in ("en", "zh"):
        lines = (shared_data / f"corpus/{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        with text.open("a", encoding="utf-8") as file:
            file.writelines(lines[::3])
    small = sorted((shared_data / "knowlm").glob("*.txt"))
    run_script(SCRIPT, "--file_path", text, *small, "--output_dir", tmp_path / "text", "--num_workers", 2)
    report = json.loads((tmp_path / "text/report/report.json").read_text())
    for file in report["files"].values():
        assert file["kept"] > 0.85 * file["read"] and file["read"] == file["kept"] + file["dropped"]
    source = shared_data / "corpus/code.jsonl"
    run_script(SCRIPT, "--file_path", source, "--output_dir", tmp_path / "code", "--language", "code")
    totals = json.loads((tmp_path / "code/report/report.json").read_text())["totals"]
    assert totals["bytes_kept"] > 0.85 * totals["bytes_read"]


def test_mixed_text_is_divided_into_characters_words_and_marks() -> None:
    assert cleaning_rules.WORD_TOKENIZER.word_tokenize("Don't——看 https://a.b/c?d=1，x_1!!") == [
        "Don't", "——", "看", "https://a.b/c?d=1", "，", "x_1", "!!",
    ]  # fmt: skip


def test_signatures_computed_in_parts_equal_datatroves(tmp_path: Path) -> None:
    ours = cleaning_rules.MinhashSignatures(str(tmp_path), cleaning_rules.MINHASH, cleaning_rules.WORD_TOKENIZER)
    theirs = MinhashDedupSignature(str(tmp_path), cleaning_rules.MINHASH, cleaning_rules.WORD_TOKENIZER)
    for sentences in (1, 14, 300):
        shingles = ours.get_shingles(english(1, sentences))
        assert ours.get_signature(shingles) == theirs.get_signature(shingles)


def test_repetition_filter_equals_datatroves() -> None:
    draw = random.Random(1)
    for language, made in (("en", english), ("zh", chinese)):
        limits = cleaning_rules.THRESHOLDS[language]["gopher_repetition"]
        ours, theirs = (
            cleaning_rules.RepetitionFilter(**limits),
            GopherRepetitionFilter(**limits, language=cleaning_rules.WORD_TOKENIZER),
        )
        results = set()
        for seed in range(120):
            parts = [made(seed, 4), made(seed, draw.randrange(1, 5))[: draw.randrange(20, 400)], made(seed + 1, 5)]
            text = "\n".join(draw.choices(parts, k=draw.randrange(1, 6)))
            results.add(theirs.filter(Document(text, "")))
            assert ours.filter(Document(text, "")) == theirs.filter(Document(text, ""))
        assert len(results) > 3


def test_interrupted_run_starts_again_after_rules_or_versions_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TextSource()
    plan = CleaningPlan(tmp_path / "out.partial", [], [(0, 0)], source, "auto", frozenset(), {"en": ["casino"]})
    finished = plan.folder / "logs/finished"

    def is_kept() -> bool:
        with resume_journal.locked_journal(plan.folder):
            cleaning_run.prepare_folder(plan.folder, plan, 3)
        kept = finished.exists()
        finished.touch()
        return kept

    assert [is_kept(), is_kept()] == [False, True]
    (tmp_path / "other_rules.py").touch()
    monkeypatch.setattr(cleaning_report, "RULES", [tmp_path / "other_rules.py"])
    assert [is_kept(), is_kept()] == [False, True]
    monkeypatch.setattr(cleaning_report, "version", lambda package: "0")
    assert [is_kept(), is_kept()] == [False, True]


def test_tasks_are_consecutive_shards_and_cover_all_shards() -> None:
    shards = [Shard("a", size, 0, 0, size) for size in (5, 4, 20, 1, 1, 1)]
    assert divide_into_tasks(shards, 10) == [(0, 2), (2, 3), (3, 6)]
    assert len(divide_into_tasks([Shard("a", 10, 0, 0, 10)] * 5000, 10)) <= 1000


def test_normalised_text_collapses_white_space_and_composes_characters() -> None:
    assert cleaning_rules.normalised_text(Document(" e\u0301t\u00e9\n\n x", "")) == "\u00e9t\u00e9 x"
