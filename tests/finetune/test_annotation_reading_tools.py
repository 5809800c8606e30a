"""Exports of annotation tools as annotated sentences: Doccano, Label Studio, brat and spaCy, with their offsets."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from annotation_reading.annotated_sentences import AnnotatedSentence, Entity, Event, Mention, Relation
from annotation_reading.annotation_checks import check_sentence
from annotation_reading.annotation_files import read_annotation_files, recognise_format
from spacy_files import docbin_reader
from spacy_files.string_hashes import string_hash

TEXT = "😀 Ann Lee lives in Oslo."
ANN, OSLO = Mention("Ann Lee", ((2, 9),)), Mention("Oslo", ((19, 23),))
ENTITIES = (Entity("PER", ANN), Entity("LOC", OSLO))
LIVES = Relation("lives_in", ANN, OSLO, "PER", "LOC")


def read_json(folder: Path, form: str, *rows: Any, lines: bool = True) -> list[AnnotatedSentence]:
    """Return the sentences of rows whose format is recognised as `form`."""
    path = folder / "export.json"
    text = "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows, indent=2)
    path.write_text(text, encoding="utf-8")
    assert recognise_format(path) == form
    return list(read_annotation_files(path))


def problems_of(sentence: AnnotatedSentence) -> list[str]:
    """Return the problems of a sentence without their location."""
    problems = check_sentence(sentence)[1]
    assert all(problem.startswith(f"{sentence.location} ") for problem in problems)
    return [problem.removeprefix(f"{sentence.location} ") for problem in problems]


def doccano(**changes: Any) -> dict[str, Any]:
    """Return a row of Doccano's JSONL export of a project with relations."""
    entities = [
        {"id": 8, "label": "PER", "start_offset": 1, "end_offset": 9},  # with the space before
        {"id": 9, "label": "LOC", "start_offset": 19, "end_offset": 23},
    ]
    relations = [{"id": 3, "from_id": 8, "to_id": 9, "type": "lives_in"}]
    return {"id": 1, "text": TEXT, "Comments": [], "entities": entities, "relations": relations} | changes


@pytest.mark.parametrize("key", ["label", "labels"])
def test_doccano_labels_are_read_in_characters(tmp_path: Path, key: str) -> None:
    row = {"id": 1, "text": TEXT, key: [[2, 9, "PER"], [19, 23, "LOC"]], "Comments": []}
    (sentence,) = read_json(tmp_path, "doccano", row)
    assert (sentence.entities, sentence.relations) == (ENTITIES, None)
    assert check_sentence(sentence) == (sentence, [])


def test_doccano_relations_connect_their_entities(tmp_path: Path) -> None:
    (sentence,) = read_json(tmp_path, "doccano", doccano())
    assert (sentence.entities, sentence.relations) == (ENTITIES, (LIVES,))
    assert problems_of(sentence) == []


def test_doccano_bad_items_are_problems(tmp_path: Path) -> None:
    entities = [{"id": 8, "label": "PER", "start_offset": 20, "end_offset": 10**400}]
    (sentence,) = read_json(tmp_path, "doccano", doccano(entities=entities))
    assert problems_of(sentence) == [
        "relation 'lives_in' has the end '9', which is not an entity of the text",
        "entity '' has the span [20, huge], but the text has 24 characters",
    ]
    assert check_sentence(sentence)[0][3:5] == ((), ())


def label_studio(*results: dict[str, Any], text: str = TEXT, **changes: Any) -> dict[str, Any]:
    """Return a task of Label Studio's JSON export with the results of one annotation."""
    annotation = {"id": 1, "completed_by": 1, "result": list(results), "was_cancelled": False, "ground_truth": False}
    return {"id": 1, "annotations": [annotation], "predictions": [], "data": {"text": text}, "project": 1} | changes


def region(name: str, start: int, end: int, label: str, text: str | None) -> dict[str, Any]:
    value = {"start": start, "end": end, "labels": [label]} | ({} if text is None else {"text": text})
    return {"id": name, "from_name": "label", "to_name": "text", "type": "labels", "origin": "manual", "value": value}


def arrow(start: str, end: str, **keys: Any) -> dict[str, Any]:
    return {"from_id": start, "to_id": end, "type": "relation", "direction": "right", "labels": ["lives_in"]} | keys


@pytest.mark.parametrize(("shift", "ann"), [(0, "Ann Lee"), (1, "Ann Lee"), (0, None)])
def test_label_studio_offsets_are_characters_or_utf16_units(tmp_path: Path, shift: int, ann: str | None) -> None:
    """An emoji is two UTF-16 code units, in which versions of 2021 and before count (shift 1)."""
    oslo = region("b", 19 + shift, 23 + shift, "LOC", "Oslo" if ann else None)
    task = label_studio(region("a", 2 + shift, 9 + shift, "PER", ann), oslo, arrow("a", "b"))
    (sentence,) = read_json(tmp_path, "labelstudio", task, lines=False)
    assert (sentence.entities, sentence.relations) == (ENTITIES, (LIVES,))
    assert check_sentence(sentence) == (sentence, [])


@pytest.mark.parametrize("shift", [0, 1])
def test_label_studio_ends_of_2019_are_last_characters(tmp_path: Path, shift: int) -> None:
    """Label Studio's own example has the region 343 to 353 for the 11 characters "February 22"."""
    regions = region("a", 2 + shift, 8 + shift, "PER", "Ann Lee"), region("b", 19 + shift, 22 + shift, "LOC", "Oslo")
    task = label_studio(*regions)
    task["completions"] = task.pop("annotations")
    (sentence,) = read_json(tmp_path, "labelstudio", task, lines=False)
    assert sentence.entities == ENTITIES
    assert check_sentence(sentence) == (sentence, [])


def test_label_studio_line_ends_and_white_space_in_regions_are_accepted(tmp_path: Path) -> None:
    task = label_studio(region("a", 0, 9, "PER", "Ann\\nLee "), text="Ann\nLee in Oslo")
    task["annotations"][0]["result"][0]["value"]["end"] = 8
    (sentence,) = read_json(tmp_path, "labelstudio", task)
    assert sentence.entities == (Entity("PER", Mention("Ann\nLee", ((0, 7),))),)


def test_label_studio_relation_directions_are_followed(tmp_path: Path) -> None:
    regions = region("a", 2, 9, "PER", "Ann Lee"), region("b", 19, 23, "LOC", "Oslo")
    results = *regions, arrow("b", "a", direction="left"), arrow("a", "b", direction="bi", labels=["near"])
    near = LIVES._replace(label="near")
    back = Relation("near", OSLO, ANN, "LOC", "PER")
    (sentence,) = read_json(tmp_path, "labelstudio", label_studio(*results))
    assert sentence.relations == (LIVES, near, back)


def test_label_studio_choices_and_ratings_of_a_region_are_not_read(tmp_path: Path) -> None:
    region = {"start": 2, "end": 9, "text": "Ann Lee"}
    results: list[Any] = [
        {"id": "a", "type": "labels", "value": region | {"labels": ["PER"]}},
        {"id": "a", "type": "choices", "value": region | {"choices": ["positive"]}},
        {"id": "a", "type": "taxonomy", "value": region | {"taxonomy": [["living", "human"]]}},
        {"id": "a", "type": "rating", "value": region | {"rating": 4}},
        {"id": "r", "type": "rating", "value": {"rating": 4}},
        {"id": "b", "type": "labels", "value": {"start": 19, "end": 23, "text": "Oslo", "labels": ["LOC"]}},
        {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right", "labels": ["lives_in"]},
    ]
    (sentence,) = read_json(tmp_path, "labelstudio", {"data": {"text": TEXT}, "annotations": [{"result": results}]})
    assert (sentence.entities, sentence.relations) == (ENTITIES, (LIVES,))
    assert problems_of(sentence) == []


def test_label_studio_bad_items_are_problems(tmp_path: Path) -> None:
    choice = {"id": "c", "type": "choices", "from_name": "s", "to_name": "text", "value": {"choices": ["good"]}}
    html = region("h", 0, 1, "PER", "Ann")
    html["value"] |= {"start": "/div[1]/text()[1]", "end": "/div[1]/text()[1]"}
    bare = region("e", 2, 5, "PER", "Ann") | {"value": {"start": 2, "end": 5, "text": "Ann", "labels": []}}
    wrong = region("w", 4, 8, "LOC", "Oslo")
    task = label_studio(choice, html, bare, wrong, arrow("w", "z"), arrow("w", "w", labels=[]))
    task["annotations"] += [task["annotations"][0] | {"result": []}]
    (sentence,) = read_json(tmp_path, "labelstudio", task)
    assert problems_of(sentence) == [
        "has 2 annotations, of which only one is read",
        "relation 'lives_in' has the end 'z', which is not an entity of the text",
        "relation from 'w' to 'w' has no label",
        "region 'Ann' is not a region of plain text",
        "region 'Ann' has no label",
        "entity 'Oslo' has the span [4, 8], where the text is 'n Le'",
    ]


def test_label_studio_skipped_and_reviewed_annotations_are_distinguished(tmp_path: Path) -> None:
    task = label_studio(region("a", 2, 9, "PER", "Ann Lee"), data={"passage": TEXT})
    skipped = task["annotations"][0] | {"was_cancelled": True}
    reviewed = task["annotations"][0] | {"ground_truth": True, "result": []}
    one, two = read_json(
        tmp_path, "labelstudio", task | {"annotations": [skipped]}, task | {"annotations": [skipped, reviewed]}
    )
    assert (one.entities, problems_of(one)) == (None, ["has no completed annotation"])
    assert (two.entities, problems_of(two)) == ((), [])


BRAT_TEXT = "\r\n".join(["😀 Ann and Bob Lee live in Oslo.", "", "Ann left for Rome", "in May.", ""])
BRAT_ANN = """T1\tPerson 2 5;14 17\tAnn Lee
T2\tPerson 10 17\tBob Lee
T3\tCity 26 30\tOslo
T4\tLeave 39 43\tleft
T5\tCity 48 52\tRome
T6\tPerson 35 38\tAnn
T7\tDate 57 60\tMay
T8\tPlan 39 56\tleft for Rome in
T9\tCity 3 7\tOslo
T10\tTold 17 22\tlive
R1\tlives_in Arg1:T1 Arg2:T3\t
R2\tborn_in Arg1:T1 Arg2:T5
R3\tborn_in Arg1:T1 Arg2:T77
E1\tLeave:T4 Who:T6 To:T5 To2:T4 When:T7
E2\tStay:T9
E3\tTold:T10 What:E2
*\tEquiv T1 T2
A1\tNegation E1
N1\tReference T3 Wikipedia:585\tOslo
#1\tAnnotatorNotes T1\tsure?
"""


def write_brat(folder: Path, name: str = "doc", text: str = BRAT_TEXT, ann: str = BRAT_ANN) -> Path:
    (folder / f"{name}.txt").write_bytes(text.encode())
    (folder / f"{name}.ann").write_text(ann, encoding="utf-8")
    return folder / f"{name}.ann"


def test_brat_documents_are_read_by_line(tmp_path: Path) -> None:
    path = write_brat(tmp_path)
    assert recognise_format(path) == recognise_format(tmp_path) == "brat"
    first, second, third = read_annotation_files(path)
    assert [one.text for one in (first, second, third)] == [
        "😀 Ann and Bob Lee live in Oslo.", "Ann left for Rome", "in May."
    ]  # fmt: skip
    assert [one.location for one in (first, second, third)] == [f"{tmp_path}/doc.txt:{line}" for line in (1, 3, 4)]
    ann, oslo = Mention("Ann Lee", ((2, 5), (14, 17))), Mention("Oslo", ((26, 30),))
    assert first.entities == (
        Entity("Person", ann), Entity("Person", Mention("Bob Lee", ((10, 17),))), Entity("City", oslo)
    )  # fmt: skip
    assert first.relations == (Relation("lives_in", ann, oslo, "Person", "City"),)
    rome, left = Mention("Rome", ((13, 17),)), Mention("left", ((4, 8),))
    arguments = (("Who", Mention("Ann", ((0, 3),))), ("To", rome), ("To", left))
    assert second.events == (Event("Leave", left, arguments),)
    assert third.entities == (Entity("Date", Mention("May", ((3, 6),))),)


def test_brat_annotations_that_do_not_fit_are_problems(tmp_path: Path) -> None:
    path = write_brat(tmp_path)
    found = [problem for sentence in read_annotation_files(path) for problem in check_sentence(sentence)[1]]
    line = f"{tmp_path}/doc.txt:1"
    assert found == [
        f"{path}:12 relation 'born_in' connects two lines",
        f"{path}:13 relation 'born_in' refers to 'T77', which is not in the file",
        f"{line} event 'Stay' has the trigger 'Oslo', which has the span [3, 7], where the text is 'nn a'",
        f"{line} event 'Told' has the trigger 'live', which has the span [17, 22], where the text is ' live'",
        f"{path}:8 entity 'left for Rome in' crosses a line end, but each line is a sentence",
        f"{path}:14 event 'Leave': argument 'When' is not in the line of the trigger",
    ]


def test_brat_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write_brat(tmp_path / "b", text="\ufeffAnn", ann="T1\tPerson 1 4\tAnn\n")
    write_brat(tmp_path, "a", text="Oslo", ann="T1\tCity 0 5\tOslo\nT2\tCity 9 999999999999999\tx\n")
    write_brat(tmp_path, "c", text="\n \n", ann="")
    (tmp_path / "notes.txt").write_text("not annotated")
    oslo, ann = read_annotation_files(tmp_path)
    assert [problem.split(" ", 1)[1] for problem in check_sentence(oslo)[1]] == [
        "entity 'Oslo' has the span [0, 5], but the text has 4 characters",
        "entity 'x' has the span [9, 999999999999999], but the text has 4 characters",
    ]
    assert (ann.text, ann.entities) == ("Ann", (Entity("Person", Mention("Ann", ((0, 3),))),))
    assert check_sentence(ann)[1] == []


@pytest.mark.parametrize(
    ("text", "ann", "message"),
    [
        (
            "Ann",
            "T1\tPerson 0\tAnn\n",
            r"doc.ann:1 is not a brat annotation \('T1\\tPerson 0\\tAnn'\); write T, R or E",
        ),
        ("Ann", "T1 Person 0 3 Ann\n", "doc.ann:1 is not a brat annotation"),
        ("Ann", f"T1\tPerson 0 {'9' * 5000}\tAnn\n", "doc.ann:1 is not a brat annotation"),
        ("Ann", "\nT1\tP 0 3\tAnn\nT1\tP 0 3\tAnn\n", "doc.ann:3 has the id 'T1' of an earlier line; give it another"),
        (" \n", "T1\tP 0 1\t \n", r"doc.ann has annotations, but .*doc.txt has no text; give its text"),
        (" \n", "", "doc.ann holds no text; give"),
    ],
)
def test_error_for_malformed_brat_names_file_and_line(tmp_path: Path, text: str, ann: str, message: str) -> None:
    path = write_brat(tmp_path, text=text, ann=ann)
    with pytest.raises(ValueError, match=message) as raised:
        list(read_annotation_files(path))
    assert "\n" not in str(raised.value)


def test_error_for_brat_without_text_names_it(tmp_path: Path) -> None:
    path = write_brat(tmp_path)
    (tmp_path / "doc.txt").write_bytes(b"Ann\n\xff")
    with pytest.raises(ValueError, match=r"doc.txt:2 is not UTF-8 \(byte 0xff\)"):
        list(read_annotation_files(path))
    (tmp_path / "doc.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"doc.txt does not exist; put the text beside"):
        list(read_annotation_files(path))
    with pytest.raises(FileNotFoundError, match=r"has no \.ann file; --format brat takes"):
        list(read_annotation_files(tmp_path / "none.ann"))


# Written by spaCy 3.8.18: DocBin(docs=…, store_user_data=True).to_bytes() of six documents with entities, span groups,
# an emoji, symbols as words (mark, DATE), unset entities, no text, and unknown spaces.
DOCBIN = base64.b85decode(
    "c%186UY1%^oSC1u*g(&4X<|u9QSn?yXHPG0A74NJfU}H8&N3c7%Xn;ANq%-}Uhz@xg#BrZeeshm_F1Xf7q%V0ahQPsV208)jHu#_7%EZ0nX^"
    "hu=B-nf_b&R;o~*XNfsj2g^U&=fsIOm^bJzVB2VgWI^-QE04+m4PX{m?TiNwHYTG_Ll5tXKuJ?&8Q>+CnC=1=UtN-KMkH{G7ByKjvqjHZ=6h"
    "9$n*5l1&m7d|vx6L;;?TSDq#>H4IH_M_83))I6V4D1w>>h68}M;S&FQctdbUWvb~tTTz_h0(OKC+?H#?3b4dey%P$Ht~}ra|NyJS#)TP&zqa"
    "|>tQsl?6KB*>^pA;OBjqMq#l+I7!0TD9X@sX35-i9`yG7WCKK(tQW!=PvIlM+nmvR-MzK%aE|rV>VKgE2<c3?%*85xB!gIgDXhP~?;nqlEd9"
    "D2M!27+rON(JNA@wlhNwsHQlHo>C>(x9knvi;O!%gAF)XjZIM08*@t?W_UA5$5f^>rJq^H18;VypPCu?Ow-9xbZ071&3nF$D9E(~dXdDP<A*"
    "Fq&L@2m$45sq5pa>NQ|At?bDz+8Q;ZcPlH5rj<RU#t*J^Kq!7l^$)q}ZEi(w5zo%XwkD<Zk)I0nw~}cLLH{hg?tSEG(veLtnp}Gbfn~)7iOH"
    "$OM`Rdb0NIg19uP7v&q>WoFUcrAA^|FwIDnXi0TF~CdU<h4QD$Cx@f`-u1q-<r>MYb-?3kCg#Kkehb+LPZ>tY{&=fys$sf+ybm-*!vl_yp%_"
    "scKI0P0xcU!0S_EWkA=*xzqyfRCfI>#`tMcTa!6#ff=&D}gw_B(WqlWpQ$1-jWm`Ye`0GQR<@1yhWMCi*r&_m*gfEWiQIhUzP_kH4kcPKFCy"
    "v*A_o+Xj=Sa*P3NdcI|rJxpMK7y>k{n?U}y#>6{hIp3d)kx}$0F)9p(aKbz6F_}SdPB_HO`Xjqb*SW-N#0SuO=<s_yTPix$ikyspGnwOoIU!"
    "E5aG5HX^1P`wU(s}XeMfs%##nX=LZ#t6Qyd*C%H+4~QGNcpLuoR@Cc+wG!0^{AvIG(dl4>$su>_E&7#L_^liK#MK^JiR^(}!-TN)D(>`H4VV"
    "j<`T9T$-4kn3;!S=R{1CpsA+;NN_>z1T{Q0CqlFzVVr=BR+bj07R3W2H*wk##s)M50HV3@{r"
)


def test_spacy_documents_are_read_without_spacy(tmp_path: Path) -> None:
    path = tmp_path / "sample.spacy"
    path.write_bytes(DOCBIN)
    assert recognise_format(path) == "spacy"
    found = list(read_annotation_files(path))
    blank = found.pop(4)
    assert check_sentence(blank)[1] == [f"{path}, document 5 has a blank text and is skipped"]
    assert [check_sentence(one) for one in found] == [(one, []) for one in found]
    assert [(one.text, one.language) for one in found] == [
        ("Ann Lee 😀 can mark DATE in Oslo , \nNorway.", "en"),
        ("李明在北京工作。", "zh"),
        ("Nothing is annotated here", "en"),
        ("Nothing here", "en"),
        ("No spaces", "en"),
    ]
    assert [one.location.rsplit("/", 1)[1] for one in found] == [f"sample.spacy, document {n}" for n in (1, 2, 3, 4, 6)]
    assert found[0].entities == (
        Entity("PERSON", Mention("Ann Lee", ((0, 7),))),
        Entity("城市", Mention("Oslo", ((27, 31),))),
        Entity("REGION", Mention("Oslo , \nNorway", ((27, 41),))),
        Entity("PLACE", Mention("Oslo", ((27, 31),))),
        Entity("GPE", Mention("Norway", ((35, 41),))),
    )
    assert found[1].entities == (
        Entity("人物", Mention("李明", ((0, 2),))), Entity("LOC", Mention("北京", ((3, 5),)))
    )  # fmt: skip
    assert [one.entities for one in found[2:]] == [None, (), None]


def test_string_hashes_are_those_of_spacy() -> None:
    hashes = {"": 0, "PERSON": 380, "coffee": 3197928453018144401}  # coffee: from spaCy's documentation
    assert {text: string_hash(text) for text in hashes} == hashes


def damaged(edit: Any) -> bytes:
    """Return the DocBin after an edit of its decompressed content."""
    return zlib.compress(edit(zlib.decompress(DOCBIN)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (DOCBIN[: len(DOCBIN) // 2], "it ends within the compressed data"),
        (DOCBIN[:300] + b"\0" * 20 + DOCBIN[320:], "Error -3"),
        (damaged(lambda data: data[:-5]), "it ends within a value"),
        (damaged(lambda data: data.replace(b"\xa6tokens", b"\xa6tokenx")), "it has no tokens"),
        (damaged(lambda data: data.replace("李".encode(), "王".encode())), "it lacks the string of the number"),
        (damaged(lambda data: data.replace(b"\xa5attrs\x9d", b"\xa5attrs\x9c")), "it has a value of the kind"),
        (damaged(lambda data: data.replace("城市".encode(), b"\xff" * 6)), "it has a text that is not UTF-8"),
        (zlib.compress(b"\x81\xa4cats" + b"\x91" * 100_000), "it ends within a value"),
        (zlib.compress(b"\x81\xa7strings\xdd\xff\xff\xff\xff"), "it ends within a value"),
        (zlib.compress(b"\x80"), "it has no attrs, lengths, spaces, strings, tokens"),
    ],
)
def test_error_for_damaged_docbin_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.spacy"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"x.spacy is not an undamaged DocBin \({reason}.*\); write it again"
    ) as raised:
        list(read_annotation_files(path, "spacy"))
    assert "\n" not in str(raised.value)


def test_docbin_that_expands_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docbin_reader, "MOST_BYTES", 10_000_000)
    path = tmp_path / "x.spacy"
    path.write_bytes(zlib.compress(b"\x80" + bytes(20_000_000)))
    assert path.stat().st_size < 30_000
    with pytest.raises(ValueError, match=r"x.spacy has more than 10,000,000 bytes when it is decompressed; split it"):
        list(read_annotation_files(path))
