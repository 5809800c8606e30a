"""triple_checks: an NLI model that rejects triples, and a language model behind an API that rejects and adds some."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kg2instruct
import psutil
import pytest
from triple_checks import language_model_check
from triple_checks.entailment_check import EntailmentCheck, triple_as_sentence

Row = dict[str, Any]


def entity(name: str, kind: str, start: int) -> Row:
    return {"name": name, "type": kind, "spans": [[start, start + len(name)]], "id": f"id of {name}"}


def relation(subject: str, label: str, object: str) -> Row:
    return {"subject": subject, "relation": label, "object": object, "subject_type": "person", "object_type": "place"}


ROW: Row = {
    "sentence": "Ann Lee left Oslo for Rome.",
    "entity_list": [entity("Ann Lee", "person", 0), entity("Oslo", "place", 13), entity("Rome", "place", 22)],
    "relation_list": [relation("Ann Lee", "born in", "Oslo"), relation("Ann Lee", "died in", "Rome")],
}


@pytest.fixture(scope="module")
def nli_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """BERT classifiers with random weights whose bias decides the label: label -> folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Ann", "Lee", "Oslo", "born"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    labels = {0: "contradiction", 1: "ENTAILMENT", 2: "neutral"}
    folders = {}
    for number, label in labels.items():
        config = BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=64, id2label=labels, label2id={name: at for at, name in labels.items()},
        )  # fmt: skip
        model = BertForSequenceClassification(config)
        with torch.no_grad():
            model.classifier.bias[number] = 100.0
        folders[label] = tmp_path_factory.mktemp(label)
        model.save_pretrained(folders[label])
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folders[label])
    return folders


@pytest.mark.parametrize(("label", "kept"), [("ENTAILMENT", 2), ("neutral", 0), ("contradiction", 0)])
def test_triples_that_are_not_entailed_are_rejected(nli_models: dict[str, Path], label: str, kept: int) -> None:
    rows = list(EntailmentCheck(str(nli_models[label]), {})(iter([ROW, ROW])))
    assert [len(row["relation_list"]) for row in rows] == [kept, kept]
    assert rows[0]["entity_list"] == ROW["entity_list"]


def test_command_applies_the_nli_model(
    nli_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kg.tsv").write_text("Ann Lee\tborn in\tOslo\n")
    Path("texts.txt").write_text("Ann Lee was born in Oslo. " * 100 + "\n")  # longer than the model's positions
    options = ["--text", "texts.txt", "--kg", "kg.tsv", "--output", "rows.jsonl", "--sentences_per_row", "100"]
    for label, kept in (("ENTAILMENT", 1), ("neutral", 0)):
        kg2instruct.main([*options, "--nli", str(nli_models[label])])
        row = json.loads(Path("rows.jsonl").read_text())
        assert len(row["relation_list"]) == kept


def test_model_without_entailment_label_is_refused(nli_models: dict[str, Path], tmp_path: Path) -> None:
    for file in nli_models["neutral"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "1": "b", "2": "c"}}))
    with pytest.raises(ValueError, match="has no label entailment in id2label"):
        list(EntailmentCheck(str(tmp_path), {})(iter([ROW])))


@pytest.mark.parametrize(
    ("label", "language", "sentence"),
    [
        ("capital", "en", "The capital of X is {object}."),
        ("works for", "en", "X works for {object}."),
        ("born in", "en", "X was born in {object}."),
        ("/people/person/place_of_birth", "en", "The place of birth of X is {object}."),
        ("首府", "zh", "X的首府是{object}。"),
        ("P19", "en", "X came from {object}!"),
    ],
)
def test_triple_is_written_as_a_sentence(label: str, language: str, sentence: str) -> None:
    one = {"subject": "X", "relation": label, "object": "{object}"}
    assert triple_as_sentence(one, language, {"P19": "{subject} came from {object}!"}) == sentence


class Api:
    """A server with the interface of OpenAI; `replies`: status and text of its answers, the last one repeatedly."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, str]] = []
        self.requests: list[dict[str, Any]] = []
        self.may_answer = threading.Event()  # requests after the first wait for it
        self.may_answer.set()
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                api.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                if len(api.requests) > 1:
                    api.may_answer.wait()
                status, text = api.replies.pop(0) if len(api.replies) > 1 else api.replies[0]
                body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(language_model_check.time, "sleep", lambda _: None)
    one = Api()
    threading.Thread(target=one.server.serve_forever, daemon=True).start()
    yield one
    one.server.shutdown()
    one.server.server_close()


def checked(api: Api, journal: Path, rows: list[Row]) -> list[Row]:
    endpoint = language_model_check.Endpoint(api.url, "model", 2)
    check = language_model_check.LanguageModelCheck(endpoint, ["born in", "died in", "left"], None, journal)
    return list(check(iter(rows)))


ANSWER = 'Of course: {"reject": [1, 9], "add": [{"subject": 1, "relation": "left", "object": 2}, %s]}'
INVALID = (
    '{"subject": 1, "relation": "unknown", "object": 2}, {"subject": 1, "relation": "left", "object": 7}, '
    '{"subject": 2, "relation": "left", "object": 2}, {"subject": true, "relation": "left", "object": 2}, 5, '
    '{"subject": 1, "relation": "died in", "object": 3}'
)


def test_language_model_rejects_and_adds_triples_between_entities(api: Api, tmp_path: Path) -> None:
    api.replies = [(503, ""), (200, ANSWER % INVALID)]
    row = checked(api, tmp_path / "journal", [ROW])[0]
    assert [(one["subject"], one["relation"], one["object"]) for one in row["relation_list"]] == [
        ("Ann Lee", "died in", "Rome"), ("Ann Lee", "left", "Oslo"),
    ]  # fmt: skip
    assert row["relation_list"][1]["object_spans"] == [[13, 17]]
    assert len(api.requests) == 2 and "1. Ann Lee | born in | Oslo" in api.requests[1]["messages"][0]["content"]


def test_journaled_answers_are_not_asked_again(api: Api, tmp_path: Path) -> None:
    api.replies = [(200, '{"reject": [1]}')]
    journal = tmp_path / "journal"
    first = checked(api, journal, [ROW] * 3)
    asked = len(api.requests)
    journal.write_text(journal.read_text() + '["cut off')
    assert checked(api, journal, [ROW] * 3) == first and len(api.requests) == asked
    assert [len(row["relation_list"]) for row in first] == [1, 1, 1]


@pytest.mark.parametrize(
    "text",
    ["", "nothing", "[1]", '{"reject": 1, "add": {}}', '{"reject": ["1"]}', pytest.param("{" * 100_000, id="nested")],
)
def test_answer_that_cannot_be_read_leaves_the_row_unchanged(api: Api, tmp_path: Path, text: str) -> None:
    api.replies = [(200, text)]
    assert checked(api, tmp_path / "journal", [ROW]) == [ROW]


def test_refused_request_and_silent_server_end_the_run(api: Api, tmp_path: Path) -> None:
    api.replies = [(404, "no such model")]
    with pytest.raises(ValueError, match=r"refuses the request \(HTTP 404"):
        checked(api, tmp_path / "journal", [ROW])
    api.replies = [(500, "")]
    with pytest.raises(ConnectionError, match="does not answer after 5 attempts"):
        checked(api, tmp_path / "journal", [ROW])


def test_row_with_one_entity_is_not_asked(api: Api, tmp_path: Path) -> None:
    row = ROW | {"entity_list": ROW["entity_list"][:1], "relation_list": []}
    assert checked(api, tmp_path / "journal", [row]) == [row] and not api.requests


def test_killed_run_keeps_finished_tasks_and_the_same_command_resumes(
    api: Api, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kg.tsv").write_text("Ann Lee\tborn in\tOslo\n")
    texts = [f"{'It rained all day. ' * 60_000} Ann Lee was born in Oslo in {year}." for year in (1879, 1880)]
    Path("texts.txt").write_text("\n".join(texts) + "\n")
    options = ["--text", "texts.txt", "--kg", "kg.tsv", "--output", "rows.jsonl", "--task_megabytes", "1"]
    options += ["--llm", api.url, "--llm_model", "model"]
    api.replies = [(200, "{}")]
    api.may_answer.clear()
    process = subprocess.Popen(
        [sys.executable, str(repository / "finetune/kg2instruct.py"), *options], start_new_session=True
    )
    while process.poll() is None and not (
        Path("rows.jsonl.partial/logs/link/completions/00000").exists() and len(api.requests) == 2
    ):
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(workers)  # they hold the lock, too
    assert not Path("rows.jsonl").exists()
    api.may_answer.set()
    kg2instruct.main(options)
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert [row["sentence"][-5:] for row in rows] == ["1879.", "1880."]
    asked = [request["messages"][0]["content"].partition("in 18")[2][:2] for request in api.requests]
    assert asked == ["79", "80", "80"]
    assert not list(Path().glob("*.partial"))
