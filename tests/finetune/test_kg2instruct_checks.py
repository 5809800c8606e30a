"""triple_checks: an NLI model that rejects triples, and a language model behind an API that rejects and adds some."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kg2instruct
import pytest
from chat_server import ChatServer, Respond, chat_server, completion
from endpoint_requests import endpoint_client
from triple_checks.entailment_check import EntailmentCheck, triple_as_sentence
from triple_checks.language_model_check import LanguageModelCheck, ModelServer

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


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setattr(endpoint_client, "FIRST_PAUSE", 0.002)
    with chat_server() as server:
        yield server


def replying(*replies: tuple[int, str]) -> Respond:
    """Return a `respond` with these statuses and texts, the last one repeatedly."""

    def respond(body: Row, number: int) -> tuple[int, bytes, dict[str, str]]:
        status, text = replies[min(number, len(replies) - 1)]
        return status, completion(body, text), {}

    return respond


def checked(api: ChatServer, output: Path, rows: list[Row]) -> list[Row]:
    server = ModelServer(api.url, "model", {"concurrency": 2})
    return list(LanguageModelCheck(server, ["born in", "died in", "left"], None, output)(iter(rows)))


ANSWER = 'Of course: {"reject": [1, 9], "add": [{"subject": 1, "relation": "left", "object": 2}, %s]}'
INVALID = (
    '{"subject": 1, "relation": "unknown", "object": 2}, {"subject": 1, "relation": "left", "object": 7}, '
    '{"subject": 2, "relation": "left", "object": 2}, {"subject": true, "relation": "left", "object": 2}, 5, '
    '{"subject": 1, "relation": "died in", "object": 3}'
)


def test_language_model_rejects_and_adds_triples_between_entities(api: ChatServer, tmp_path: Path) -> None:
    api.respond = replying((500, ""), (200, ANSWER % INVALID))
    row = checked(api, tmp_path / "answers", [ROW])[0]
    assert [(one["subject"], one["relation"], one["object"]) for one in row["relation_list"]] == [
        ("Ann Lee", "died in", "Rome"), ("Ann Lee", "left", "Oslo"),
    ]  # fmt: skip
    assert row["relation_list"][1]["object_spans"] == [[13, 17]]
    assert len(api.bodies) == 2 and "1. Ann Lee | born in | Oslo" in api.bodies[1]["messages"][0]["content"]


def test_journaled_answers_are_not_asked_again(api: ChatServer, tmp_path: Path) -> None:
    api.respond = replying((200, '{"reject": [1]}'))
    first = checked(api, tmp_path / "answers", [ROW] * 3)
    with (tmp_path / "answers.journal").open("a") as file:
        file.write('{"key": "cut off')
    assert checked(api, tmp_path / "answers", [ROW] * 3) == first and len(api.bodies) == 1
    assert [len(row["relation_list"]) for row in first] == [1, 1, 1]


@pytest.mark.parametrize(
    "text",
    ["", "nothing", "[1]", '{"reject": 1, "add": {}}', '{"reject": ["1"]}', pytest.param("{" * 100_000, id="nested")],
)
def test_answer_that_cannot_be_read_leaves_the_row_unchanged(api: ChatServer, tmp_path: Path, text: str) -> None:
    api.respond = replying((200, text))
    assert checked(api, tmp_path / "answers", [ROW]) == [ROW]


@pytest.mark.parametrize("status", [404, 400, 500, 302])
def test_request_without_an_answer_ends_the_run(api: ChatServer, tmp_path: Path, status: int) -> None:
    api.respond = replying((status, "no such model"))
    with pytest.raises(ConnectionError, match=f"status {status}.*no such model"):
        checked(api, tmp_path / "answers", [ROW])
    assert not list(tmp_path.iterdir())


def test_row_with_one_entity_is_not_asked(api: ChatServer, tmp_path: Path) -> None:
    row = ROW | {"entity_list": ROW["entity_list"][:1], "relation_list": []}
    assert checked(api, tmp_path / "answers", [row]) == [row] and not api.bodies


def test_command_asks_the_first_model_with_the_key(
    api: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    Path("kg.tsv").write_text("Ann Lee\tborn in\tOslo\n")
    Path("texts.txt").write_text("Ann Lee was born in Oslo.\n")
    api.respond = replying((200, '{"reject": [1]}'))
    options = ["--text", "texts.txt", "--kg", "kg.tsv", "--output", "rows.jsonl"]
    for url in (api.url, f"{api.url}/v1/"):
        kg2instruct.main([*options, "--url", url])
        assert json.loads(Path("rows.jsonl").read_text())["relation_list"] == []
    assert {(body["model"], sent["Authorization"]) for body, sent in zip(api.bodies, api.headers, strict=True)} == {
        ("first", "Bearer secret")
    }
    assert len(api.bodies) == 2 and not list(tmp_path.glob("rows.jsonl.partial"))
