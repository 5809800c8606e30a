"""Annotated sentences in CoNLL columns and CoNLL04: real files, tag schemes, joined tokens, formats, and errors."""

import gzip
import json
from pathlib import Path

import ie_build
import pytest
from annotation_reading.annotated_sentences import AnnotatedSentence, Entity, Mention, Relation
from annotation_reading.annotation_checks import check_sentence
from annotation_reading.annotation_files import inconsistent_tags, read_annotation_files, recognise_format
from annotation_reading.column_files import conll04_sentences, conll_sentences, join_tokens
from annotation_reading.tag_schemes import TagCounts, TokenSpan, entity_spans, parse_tag
from crossner_files import crossner_columns

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


def spans_of(text: str) -> list[TokenSpan]:
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
    assert recognise_format(path) == form
    assert inconsistent_tags(path) == unfit
    language = "zh" if "weibo" in name else "auto"
    found = list(read_annotation_files(path, language=language))
    assert (len(found), sum(len(one.entities or ()) for one in found)) == (sentences, entities)
    assert {one.language for one in found} == {"zh" if "weibo" in name else "en"}
    assert [check_sentence(one) for one in found] == [(one, []) for one in found]
    tagged = (conll04_sentences if form == "conll04" else conll_sentences)(path)
    separator = "" if "weibo" in name else " "
    for sentence, one in zip(tagged, found, strict=True):
        assert one.text == separator.join(sentence.tokens)
        for span, entity in zip(entity_spans(sentence.tags), one.entities or (), strict=True):
            before = separator.join([*sentence.tokens[: span.first], ""]) if span.first else ""
            words = separator.join(sentence.tokens[span.first : span.last + 1])
            place = (len(before), len(before) + len(words))
            assert entity == Entity(span.label, Mention(words, (place,)))
    if not relations:
        assert {one.relations for one in found} == {None}
        return
    assert sum(len(one.relations or ()) for one in found) == relations
    for one in found:
        for triple in one.relations or ():
            assert {Entity(triple.subject_type, triple.subject), Entity(triple.object_type, triple.object)} <= {
                *(one.entities or ())
            }


def test_relation_is_read_with_both_whole_names(shared_data: Path) -> None:
    first = next(read_annotation_files(shared_data / "real/relations/conll04.dev.txt"))
    whole = "Senate Appropriations treasury and postal subcommittee"
    assert first.relations == (
        Relation("Work_For", Mention("Dennis DeConcini", ((5, 21),)), Mention(whole, ((50, 104),)), "Peop", "Org"),
    )


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
        ie_build.main(str(tmp_path / name), str(tmp_path / f"{name}.jsonl"), schema=str(source / "class.json"))
    built = [
        [json.loads(line) | {"gold": None} for line in (tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("columns.txt", "rows.json")
    ]
    assert built[0] == built[1]


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


def names(sentence: AnnotatedSentence) -> list[tuple[str, str]]:
    return [(entity.type, entity.mention.text) for entity in sentence.entities or ()]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_comments_and_document_lines_are_skipped(tmp_path: Path, newline: str) -> None:
    text = (
        "-DOCSTART- -X- O O\n\n# id 7 domain=en\nAnn NNP B-NP B-PER\nLee  NNP I-NP I-PER\n\n \n# O\n#doinme O\n"
        "-DOCSTART-\nNew York\tB-LOC\n"
    )
    path = write(tmp_path, text.replace("\n", newline))
    found = list(read_annotation_files(path))
    assert [one.text for one in found] == ["Ann Lee", "# #doinme", "New York"]
    assert [item for one in found for item in names(one)] == [("PER", "Ann Lee"), ("LOC", "New York")]
    assert [one.location for one in found] == [f"{path}:{line}" for line in (4, 8, 11)]
    assert inconsistent_tags(path) == 0


def test_compressed_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "in.conll.gz"
    path.write_bytes(gzip.compress("安 B-人\n来 O\n".encode()))
    (one,) = read_annotation_files(path)
    assert (one.text, one.language, names(one)) == ("安来", "zh", [("人", "安")])


def test_conll04_has_entities_and_relations(tmp_path: Path) -> None:
    people, nobody = read_annotation_files(write(tmp_path, CONLL04))
    assert people.text == "Ann Lee in Oslo , Norway"
    ann, oslo, norway = Mention("Ann Lee", ((0, 7),)), Mention("Oslo", ((11, 15),)), Mention("Norway", ((18, 24),))
    assert people.entities == (Entity("Peop", ann), Entity("Loc", oslo), Entity("Loc", norway))
    assert people.relations == (
        Relation("Live_In", ann, oslo, "Peop", "Loc"), Relation("Lee's", ann, norway, "Peop", "Loc")
    )  # fmt: skip
    assert nobody == AnnotatedSentence("Nobody", "en", f"{tmp_path}/in.txt:9", (), ())


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('{"sentence": "B-52"}', "json"),
        ('[\n{"sentence": "on a B-52"}]', "json"),
        ('\ufeff{"sentence": "see B-52",\n"entity_list": []}', "json"),
        ("Ann B-x\n", "conll"),
        ("[ O\n( O\n", "conll"),
        ("{\tO\n", "conll"),
        ("# O\n", "conll"),
        ("one\ntwo O\n", "conll"),  # the reader reports line 1
        ("# a comment\n\nAnn N B-x\n", "conll"),
        (CONLL04, "conll04"),
    ],
)
def test_format_is_recognised_by_content(tmp_path: Path, text: str, form: str) -> None:
    assert recognise_format(write(tmp_path, text)) == form


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "in.txt holds no rows"),
        ("[[[", "in.txt:1, row 1 is not JSON"),
        ("{broken", "in.txt:1 is not JSON"),
        ("Dear all,\nthis is a letter\n", r"in.txt is not recognised .* lines 'Dear all,', 'this is a letter'\); give"),
        ("3\n", "in.txt is not recognised"),
        ("# a comment\n", "in.txt is not recognised"),
        ("a\tb\tc\n", "in.txt is not recognised"),
        ('{"a": 1}', r"in.txt:1 is not recognised as a row of annotations \(keys: a\); give annotations in one of"),
    ],
)
def test_error_for_unknown_content_shows_it(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        recognise_format(write(tmp_path, text))
    assert "\n" not in str(raised.value)


ROW = "0\tAnn\tB-x\t['N']\t[0]\n"


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        ("conll", "Ann B-x\nLee\n", r"in.txt:2 has one column \('Lee'\); write the token first"),
        ("conll", "Ann B-x\n\tO\n", "in.txt:2 has one column"),
        ("conll", "Ann X-x\n", "in.txt:1 has the invalid tag 'X-x'; write O, or B-, I-, E-, S- or M- and a type"),
        ("conll", "Ann O\n# id 7\n", "in.txt:2 has the invalid tag '7'"),
        ("conll", "Ann B-\n", "in.txt:1 has the invalid tag 'B-'"),
        ("conll", "\n\n-DOCSTART- O\n", "in.txt holds no sentences; give a file with one token"),
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
    ],
)
def test_error_for_invalid_columns_names_file_and_line(tmp_path: Path, form: str, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as raised:
        list(read_annotation_files(path, form))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (ROW.replace("'N'", "'r'").replace("[0]", "[9]"), "index 9, which is beyond the last token"),
        (ROW.replace("B-x", "O").replace("'N'", "'r'"), "index 0, which is not the last token of an entity"),
    ],
)
def test_relation_without_two_entities_is_a_problem(tmp_path: Path, row: str, problem: str) -> None:
    path = write(tmp_path, row)
    (sentence,) = read_annotation_files(path)
    checked, problems = check_sentence(sentence)
    assert checked.relations == ()
    assert problems == [f"{path}:1 relation 'r' has the token {problem}"]


def test_error_for_invalid_file_names_the_remedy(tmp_path: Path) -> None:
    path = write(tmp_path, "Ann B-x\n")
    with pytest.raises(ValueError, match=r"in.txt:1 is not JSON"):
        list(read_annotation_files(path, "json"))
    with pytest.raises(ValueError, match="--format word is not known; give auto or one of json, "):
        list(read_annotation_files(path, "word"))
    with pytest.raises(FileNotFoundError, match="is not a file; --format conll takes a text file"):
        list(read_annotation_files(tmp_path, "conll"))
    (tmp_path / "in.txt").write_bytes("安 B-人\n来 O\n".encode("gb18030"))
    with pytest.raises(ValueError, match=r"in.txt:1 is not UTF-8"):
        list(read_annotation_files(path))


def test_inconsistent_tags_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "Ann B-x\nLee I-y\n")
    ie_build.main(path, str(tmp_path / "rows.jsonl"), format="conll")
    assert "tags: 1 are inconsistent" in capsys.readouterr().out
    assert json.loads(json.loads((tmp_path / "rows.jsonl").read_text())["output"]) == {"x": ["Ann"], "y": ["Lee"]}


def test_chinese_sentence_has_no_spaces(tmp_path: Path) -> None:
    path = write(tmp_path, "王 B-人\n明 I-人\n在 O\nNew B-地\nYork I-地\n")
    (sentence,) = read_annotation_files(path)
    assert sentence.text == "王明在New York"
    assert names(sentence) == [("人", "王明"), ("地", "New York")]
    (sentence,) = read_annotation_files(path, language="en")
    assert sentence.text == "王 明 在 New York"
