"""Annotated sentences in CoNLL columns and CoNLL04: real files, tag schemes, joined tokens, formats, and errors."""

import gzip
import json
from collections import Counter
from pathlib import Path

import ie_build
import pytest
from crossner_files import crossner_columns
from instruction_data.annotation_formats import file_format, read_annotation_file, recognise_format
from instruction_data.annotations import AnnotatedItem
from instruction_data.column_files import (
    READERS,
    Span,
    TagCounts,
    annotate,
    entity_spans,
    join_tokens,
    parse_tag,
)

CONLL04 = """#doc 5
0\tAnn\tB-Peop\t['N']\t[0]
1\tLee\tI-Peop\t['Live_In', "Lee's"]\t[3, 5]
2\tin\tO\t['N']\t[2]
3\tOslo\tB-Loc\t['N']\t[3]
4\t,\tO\t['N']\t[4]
5\tNorway\tB-Loc\t['N']\t[5]
#doc 6
0\tNobody\tO\t['N']\t[0]
"""


def spans_of(text: str) -> list[Span]:
    """Return the spans of tags such as "B-x I-x O"."""
    return entity_spans([tag for word in text.split() if (tag := parse_tag(word))])


def inconsistent(*sentences: str) -> int:
    """Return the number of inconsistent tags in a file with sentences of these tags."""
    counts = TagCounts()
    for text in sentences:
        counts.add([tag for word in text.split() if (tag := parse_tag(word))])
    return counts.inconsistent()


# Sentences, entities, relations and inconsistent tags of each file, counted without the reader (awk, grep): sentences
# by blank lines or "#doc", entities by B- and by I- that continue no span, relations by the names in the fourth column.
REAL = {
    "ner/wnut17.train.conll": ("conll", 3394, 1975, 0, 0),
    "ner/wnut17.dev.conll": ("conll", 1009, 836, 0, 0),
    "ner/weibo.train.conll": ("conll", 1350, 1895, 0, 10),
    "ner/weibo.dev.conll": ("conll", 270, 389, 0, 0),
    "relations/conll04.train.txt": ("conll04", 910, 3393, 1273, 2),
    "relations/conll04.dev.txt": ("conll04", 243, 877, 353, 0),
}


@pytest.mark.parametrize("name", REAL)
def test_real_file_is_read_completely(shared_data: Path, name: str) -> None:
    path = shared_data / "real" / name
    form, sentences, entities, relations, unfit = REAL[name]
    assert file_format(str(path)) == form
    language = "zh" if "weibo" in name else "auto"
    annotations, found = read_annotation_file(str(path), "ner", language)
    assert (len(annotations), sum(len(one.items) for one in annotations), found) == (sentences, entities, unfit)
    assert {one.language for one in annotations} == {"zh" if "weibo" in name else "en"}
    for sentence, annotation in zip(READERS[form](path), annotations, strict=True):
        separator = "" if "weibo" in name else " "
        assert annotation.sentence == separator.join(sentence.tokens)
        for span, item in zip(entity_spans(sentence.tags), annotation.items, strict=True):
            words = sentence.tokens[span.first : span.last + 1]
            assert item == AnnotatedItem(span.label, (separator.join(words),))
            assert item.names[0] in annotation.sentence
    if relations:
        triples = read_annotation_file(str(path), "re")[0]
        assert sum(len(one.items) for one in triples) == relations
        names = [{item.names[0] for item in one.items} for one in annotations]
        for entity_names, one in zip(names, triples, strict=True):
            assert all({*item.names} <= entity_names for item in one.items)


def test_relation_is_read_with_both_whole_names(shared_data: Path) -> None:
    first = read_annotation_file(str(shared_data / "real/relations/conll04.dev.txt"), "re")[0][0]
    assert first.items == [
        AnnotatedItem("Work_For", ("Dennis DeConcini", "Senate Appropriations treasury and postal subcommittee"))
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_crossner_columns_give_the_examples_of_its_json(tmp_path: Path, shared_data: Path, split: str) -> None:
    source = shared_data / "crossner/ai"
    entries = json.loads((source / f"{split}.json").read_text())
    columns = crossner_columns(entries)
    kept = [entry for entry, text in zip(entries, columns, strict=True) if text]
    assert len(kept) > 0.9 * len(entries)
    (tmp_path / "columns.txt").write_text("\n".join(filter(None, columns)), encoding="utf-8")
    (tmp_path / "rows.json").write_text(json.dumps(kept), encoding="utf-8")
    for name in ("columns.txt", "rows.json"):
        ie_build.main(str(tmp_path / name), str(tmp_path / f"{name}.jsonl"), types=str(source / "class.json"))
    assert (tmp_path / "columns.txt.jsonl").read_bytes() == (tmp_path / "rows.json.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("B-x I-x O B-x B-x", [("x", 0, 1), ("x", 3, 3), ("x", 4, 4)]),  # BIO
        ("I-x I-x O I-y I-x B-x", [("x", 0, 1), ("y", 3, 3), ("x", 4, 4), ("x", 5, 5)]),  # IOB1
        ("S-x B-x E-x B-y I-y E-y O S-y", [("x", 0, 0), ("x", 1, 2), ("y", 3, 5), ("y", 7, 7)]),  # BIOES
        ("B-x M-x M-x E-x S-x S-x", [("x", 0, 3), ("x", 4, 4), ("x", 5, 5)]),  # BMES
        ("B-y I-x I-x", [("y", 0, 0), ("x", 1, 2)]),
        ("O E-x I-x E-x", [("x", 1, 1), ("x", 2, 3)]),
        ("B-x O I-x S-x I-x", [("x", 0, 0), ("x", 2, 2), ("x", 3, 3), ("x", 4, 4)]),
        ("B-a-b I-a-b B-PER.NOM", [("a-b", 0, 1), ("PER.NOM", 2, 2)]),
        ("", []),
    ],
)
def test_spans_are_those_of_conlleval(text: str, spans: list[tuple[str, int, int]]) -> None:
    assert spans_of(text) == spans


def test_inconsistent_tags_are_counted_by_the_scheme_of_the_file() -> None:
    assert inconsistent("B-x I-x O", "B-x I-y O I-x") == 2  # BIO: I-y, I-x
    assert inconsistent("I-x I-x O I-y", "I-x B-x I-x") == 0  # IOB1
    assert inconsistent("B-x E-x S-y O", "B-x M-x E-x") == 0
    assert inconsistent("B-x E-x", "B-x O", "I-x E-x", "E-x", "B-x I-y S-x") == 5  # B-x, I-x, E-x, B-x, I-y


@pytest.mark.parametrize(
    ("words", "language", "sentence"),
    [
        ("Ann Lee 's dog .", "en", "Ann Lee 's dog ."),
        ("I met 李 明 .", "en", "I met 李 明 ."),
        ("他 在 New York 用 iPhone 。", "zh", "他在New York用iPhone。"),
        ("他 用 i P h o n e 5 ！", "zh", "他用iPhone5！"),
        ("看 h t t p1 : / / t . c n", "zh", "看http1://t.cn"),
        ("", "en", ""),
    ],
)
def test_tokens_are_joined_by_the_language(words: str, language: str, sentence: str) -> None:
    tokens = words.split()
    text, offsets = join_tokens(tokens, language)
    assert text == sentence
    assert [text[start:end] for start, end in offsets] == tokens


def write(folder: Path, text: str) -> str:
    (folder / "in.txt").write_text(text, encoding="utf-8")
    return str(folder / "in.txt")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_comments_and_document_lines_are_skipped(tmp_path: Path, newline: str) -> None:
    text = (
        "-DOCSTART- -X- O O\n\n# id 7 domain=en\nAnn NNP B-NP B-PER\nLee  NNP I-NP I-PER\n\n \n# O\n#doinme O\n"
        "-DOCSTART-\nNew York\tB-LOC\n"
    )
    annotations, unfit = read_annotation_file(write(tmp_path, text.replace("\n", newline)), "ner")
    assert [one.sentence for one in annotations] == ["Ann Lee", "# #doinme", "New York"]
    assert [item for one in annotations for item in one.items] == [
        AnnotatedItem("PER", ("Ann Lee",)), AnnotatedItem("LOC", ("New York",))
    ]  # fmt: skip
    assert unfit == 0


def test_compressed_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "in.conll.gz"
    path.write_bytes(gzip.compress("安 B-人\n来 O\n".encode()))
    (one,) = read_annotation_file(str(path), "ner")[0]
    assert (one.sentence, one.language, one.items) == ("安来", "zh", [AnnotatedItem("人", ("安",))])


def test_conll04_has_entities_and_relations(tmp_path: Path) -> None:
    path = write(tmp_path, CONLL04)
    people, nobody = read_annotation_file(path, "re")[0]
    assert people.sentence == "Ann Lee in Oslo , Norway"
    assert people.items == [
        AnnotatedItem("Live_In", ("Ann Lee", "Oslo")), AnnotatedItem("Lee's", ("Ann Lee", "Norway"))
    ]  # fmt: skip
    assert nobody == ("Nobody", "en", [])
    entities = read_annotation_file(path, "ner")[0][0].items
    assert Counter(item.label for item in entities) == {"Peop": 1, "Loc": 2}


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("", "json"),
        ('{"sentence": "B-52"}', "json"),
        ('[\n{"sentence": "on a B-52"}]', "json"),
        ('\ufeff{"sentence": "see B-52",\n"entity_list": []}', "json"),
        ("[[[", "json"),
        ("{broken", "json"),
        ("Ann B-x\n", "conll"),
        ("[ O\n( O\n", "conll"),
        ("{\tO\n", "conll"),
        ("# O\n", "conll"),
        ("one\ntwo O\n", "conll"),  # the reader reports line 1
        ("# a comment\n\nAnn N B-x\n", "conll"),
        (CONLL04, "conll04"),
        ("Dear all,\nthis is a letter\n", ""),
        ("3\n", ""),
        ("# a comment\n", ""),
        ("a\tb\tc\n", ""),
    ],
)
def test_format_is_recognised_by_content(text: str, form: str) -> None:
    assert recognise_format(text.split("\n")) == form


ROW = "0\tAnn\tB-x\t['N']\t[0]\n"


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        ("auto", "Dear all,\n\nhello there\n", r"in.txt is not recognised .* lines 'Dear all,', 'hello there'\); give"),
        ("conll", "Ann B-x\nLee\n", r"in.txt:2 has one column \('Lee'\); write the token first"),
        ("conll", "Ann B-x\n\tO\n", "in.txt:2 has one column"),
        ("conll", "Ann X-x\n", "in.txt:1 has the invalid tag 'X-x'; write O, or B-, I-, E-, S- or M- and a type"),
        ("conll", "Ann O\n# id 7\n", "in.txt:2 has the invalid tag '7'"),
        ("conll", "Ann B-\n", "in.txt:1 has the invalid tag 'B-'"),
        ("conll", "\n\n-DOCSTART- O\n", "in.txt holds no sentences; give a file with one token"),
        ("conll", "\u3000 O\n", "in.txt:1 starts a sentence that has only white space; remove its lines"),
        ("conll04", "#doc 1\n0\tAnn\tO\n", "in.txt:2 has 3 columns, not five; separate"),
        ("conll04", ROW.replace("Ann", " "), "in.txt:1 has no token; separate"),
        ("conll04", ROW + ROW, r"in.txt:2 has the index '0', but the next token of this document has the index 1;"),
        ("conll04", ROW.replace("B-x", "B"), "in.txt:1 has the invalid tag 'B'"),
        (
            "conll04",
            ROW.replace("'N'", "exit()"),
            r"in.txt:1 has '\[exit\(\)\]' and '\[0\]' in its last two columns",
        ),
        ("conll04", ROW.replace("[0]", "[0"), "in.txt:1 has .* write a list of relations and a list of token indices"),
        ("conll04", ROW.replace("[0]", "[-1]"), r"write a list of relations"),
        ("conll04", ROW.replace("[0]", "[0, 0]"), "in.txt:1 has 1 relations and 2 token indices; write one index"),
        ("conll04", ROW.replace("'N'", "'r'").replace("[0]", "[9]"), "in.txt:1 .* index 9, which is beyond the last"),
        ("conll04", ROW.replace("B-x", "O").replace("'N'", "'r'"), "index 0, which is not the last token of an entity"),
    ],
)
def test_error_for_invalid_columns_names_file_and_line(tmp_path: Path, form: str, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as raised:
        read_annotation_file(path, "re" if form == "conll04" else "ner", format=form)
    assert "\n" not in str(raised.value)


def test_error_for_invalid_file_or_task_names_the_remedy(tmp_path: Path) -> None:
    path = write(tmp_path, "Ann B-x\n")
    with pytest.raises(ValueError, match="which annotate entities only; give --task ner"):
        read_annotation_file(path, "re")
    with pytest.raises(ValueError, match=r"in.txt:1 is not JSON"):
        read_annotation_file(path, "ner", format="json")
    with pytest.raises(FileNotFoundError, match="--format conll takes a text file"):
        read_annotation_file(str(tmp_path), "ner", format="conll")
    (tmp_path / "in.txt").write_bytes("安 B-人\n来 O\n".encode("gb18030"))
    with pytest.raises(ValueError, match=r"in.txt:1 is not UTF-8"):
        read_annotation_file(path, "ner")


def test_inconsistent_tags_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "Ann B-x\nLee I-y\n")
    ie_build.main(path, str(tmp_path / "rows.jsonl"), format="conll")
    assert "tags: 1 are inconsistent" in capsys.readouterr().out
    assert json.loads(json.loads((tmp_path / "rows.jsonl").read_text())["output"]) == {"x": ["Ann"], "y": ["Lee"]}


def test_annotation_of_a_chinese_sentence_has_no_spaces(tmp_path: Path) -> None:
    path = Path(write(tmp_path, "王 B-人\n明 I-人\n在 O\nNew B-地\nYork I-地\n"))
    (sentence,) = READERS["conll"](path)
    annotation = annotate(path, sentence, "ner", "auto")
    assert annotation.sentence == "王明在New York"
    assert [item.names for item in annotation.items] == [("王明",), ("New York",)]
    assert annotate(path, sentence, "ner", "en").sentence == "王 明 在 New York"
