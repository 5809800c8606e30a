"""Confusions and their picture, comparisons of two systems, and the page of errors of finetune/ie_eval.py."""

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import RunScript
from extraction_metrics.row_scores import ScoredRow, score_rows
from extraction_reports.confusion_picture import MAX_TYPES, confusion_svg, printable_xml
from extraction_reports.error_page import page_html
from extraction_reports.item_outcomes import MISSED, SPURIOUS, WRONG_TYPE, confusions, row_outcomes
from extraction_reports.score_comparisons import compare_rows, comparison_table, f1_difference
from extraction_reports.text_marks import MAX_LANES, Mark, find_mention, text_pieces
from hostile_answers import HOSTILE


def row(predicted: Any, gold: Any, text: str | None = None, task: str = "") -> ScoredRow:
    answer = predicted if isinstance(predicted, str) else json.dumps(predicted)
    return ScoredRow(answer, json.dumps(gold), text, task=task)


def triple(subject: str, value: str) -> dict[str, str]:
    return {"subject": subject, "object": value}


def test_outcomes_pair_items_of_equal_text() -> None:
    gold = {"person": ["Ann", "Bo"], "place": ["Oslo", "Rome"]}
    found = row_outcomes(row({"person": ["Ann", "Oslo"], "place": ["Oslo", "Ox"], "org": ["Bo"]}, gold))
    assert sorted((each.status, *each.names, each.gold, each.predicted) for each in found) == [
        ("correct", "Ann", "person", "person"), ("correct", "Oslo", "place", "place"),
        ("missed", "Rome", "place", ""), ("spurious", "Oslo", "", "person"), ("spurious", "Ox", "", "place"),
        ("wrong type", "Bo", "person", "org"),
    ]  # fmt: skip
    unparsed = row_outcomes(row('["Ann"]', {"person": ["Ann"]}))
    assert [each.status for each in unparsed] == [MISSED, SPURIOUS]


def test_confusions_count_types_of_entities_triples_and_arguments() -> None:
    rows = [
        row({"person": ["Ann", "Cy"], "place": ["Bo"]}, {"person": ["Ann", "Bo", "Di"]}),
        row({"person": ["Ann"], "missed": ["Bo"]}, {"person": ["Ann", "Bo"]}),
        row({"lives in": [triple("Ann", "Oslo"), triple("Oslo", "Ann")]}, {"born in": [triple("Ann", "Oslo")]}),
    ]
    assert confusions(rows) == {
        "entity": {"person": {"person": 2, MISSED: 1, "missed (type)": 1, "place": 1}, SPURIOUS: {"person": 1}},
        "triple": {"born in": {"lives in": 1}, SPURIOUS: {"lives in": 1}},
    }
    event = {"layoff": [{"trigger": "cut", "arguments": {"company": "Ox"}}]}
    other = {"layoff": [{"trigger": "cut", "arguments": {"person": "Ox"}}]}
    assert confusions([row(other, event, task="ee")]) == {
        "trigger": {"layoff": {"layoff": 1}}, "argument": {"layoff: company": {"layoff: person": 1}},
    }  # fmt: skip
    swapped = row_outcomes(row({"born in": [triple("Oslo", "Ann")]}, {"born in": [triple("Ann", "Oslo")]}, task="re"))
    assert [(each.status, each.inverted) for each in swapped] == [(MISSED, False), (SPURIOUS, True)]


def test_confusions_add_up_to_the_counts_of_the_scores() -> None:
    rows = [row({"a": ["x", "x", "y"], "b": ["x", 3]}, {"a": ["x", "z"], "c": ["y", "y"]}) for _ in range(3)]
    table, scores = confusions(rows)["entity"], score_rows(rows)["entity"]
    cells = [(gold, predicted, number) for gold, each in table.items() for predicted, number in each.items()]
    assert sum(number for gold, predicted, number in cells if gold == predicted) == scores["correct"]
    assert sum(number for gold, _, number in cells if gold != SPURIOUS) == scores["gold"]
    assert sum(number for _, predicted, number in cells if predicted != MISSED) == scores["predicted"]


def test_picture_is_valid_escaped_and_bounded() -> None:
    many = {f"type {number}": {f"type {number}": 100 - number, MISSED: 1} for number in range(60)}
    bad = {'<script>&"\x00\ud800': {"a" * 300: 12_345}, SPURIOUS: {"a" * 300: 2}}
    text = confusion_svg({"entity": many, "triple": bad})
    root = ElementTree.fromstring(text.encode())
    texts = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == f"entity: 60 types, the {MAX_TYPES} most frequent are drawn"
    assert "12k" in texts and "100" in texts and "<script" not in text
    assert len(text) < 400_000
    assert "no items" in confusion_svg({})
    assert printable_xml("<a&\x07\ud800\U0001f600") == "&lt;a&amp;\ufffd\ufffd\U0001f600"


PAIRS = [(1, 1, 1, 1, 1, 1), (0, 1, 1, 1, 1, 1), (0, 0, 1, 1, 1, 1), (1, 2, 1, 1, 1, 1)]


def test_difference_of_f1_is_paired() -> None:
    same = f1_difference([(1, 2, 3, 1, 2, 3), (0, 1, 1, 0, 1, 1)] * 20)
    assert same == {"difference": 0, "interval": [0, 0], "p": 1}
    better = f1_difference(PAIRS * 10)
    assert better["difference"] == pytest.approx(1 - 2 * 2 / (4 + 4))
    assert 0 < better["interval"][0] < better["difference"] < better["interval"][1] <= 1 and better["p"] == 0
    reverse = f1_difference([(*each[3:], *each[:3]) for each in PAIRS * 10])
    assert reverse["interval"] == pytest.approx([-bound for bound in better["interval"][::-1]])


def test_rows_of_both_sources_are_compared_by_text() -> None:
    gold = {"person": ["Ann"], "place": ["Oslo"]}
    whole = [row(gold, gold, f"text {number}") for number in range(4)]
    parts = [
        row({"person": ["Ann"]} if number % 2 else {"person": []}, {"person": ["Ann"]}, f"text {number}")
        for number in range(4)
    ] + [row({"place": ["Oslo", "Ox"]}, {"place": ["Oslo"]}, f"text {number}") for number in range(4)]
    difference = compare_rows(whole, parts)["entity"]["difference"]
    assert difference == pytest.approx(2 * 6 / (8 + 10) - 1)
    table = comparison_table(("a.jsonl", "b.jsonl"), score_rows(whole), score_rows(parts), compare_rows(whole, parts))
    assert re.search(r"^entity items predicted +8 +10 +\+2$", table, re.MULTILINE)
    for others, message in (
        (parts[:-1], r"have 2 and 1 correct items of kind entity for 'text 3'"),
        (whole[:3], "only one of the compared files has the text 'text 3'"),
        ([each._replace(text=None) for each in whole[:3]], "have 4 and 3 rows, and not every row has a text"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_rows(whole, others)


def test_script_compares_two_files_and_writes_reports(tmp_path: Path, run_script: RunScript) -> None:
    rows = [
        {"task": "ner", "instruction": "q", "input": f"Ann went to Oslo, {number}.", "output": '{"person": ["Ann"]}'}
        for number in range(6)
    ]
    for name, answers in (
        ("a", ['{"person": ["Ann"]}', "{}"]),
        ("b", ['{"place": ["Ann", "Oslo"]}', '{"person": ["Ann"]}']),
    ):
        lines = [json.dumps(each | {"prediction": answers[at % 2]}) for at, each in enumerate(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    outputs = [tmp_path / name for name in ("scores.json", "page.html", "c.svg")]
    options = [
        word for pair in zip(("--output", "--errors", "--confusion_picture"), outputs, strict=True) for word in pair
    ]
    done = run_script(
        "finetune/ie_eval.py", "--predictions", tmp_path / "a.jsonl", "--compare", tmp_path / "b.jsonl", *options
    )
    scores = json.loads(outputs[0].read_text())
    assert scores["confusions"] == {"entity": {"person": {"person": 3, MISSED: 3}}}
    compared = scores["compare"]
    assert compared["scores"]["entity"]["predicted"] == 9 and scores["entity"]["predicted"] == 3
    assert compared["differences"]["entity"]["difference"] == pytest.approx(6 / 15 - 6 / 9)
    assert f"2: {tmp_path / 'b.jsonl'}" in done.stdout and "entity items predicted" in done.stdout
    assert "3 of 6 rows have errors; 3 are shown" in outputs[1].read_text()
    ElementTree.parse(outputs[2])
    same = run_script(
        "finetune/ie_eval.py", "--predictions", tmp_path / "a.jsonl", "--errors", "x", "--output", "x",
        status=2, cwd=tmp_path,
    )  # fmt: skip
    assert same.stderr == "error: --output and --errors name the same file; give different names\n"
    assert not (tmp_path / "x").exists()


def test_mention_is_found_as_a_whole_word_and_repeated_mentions_at_other_places() -> None:
    text = "Anne and Ann,\n Ann  Lee; 安妮在北京。"
    assert find_mention(text, "Ann", set()) == (9, 12)
    assert find_mention(text, "Ann", {(9, 12)}) == (15, 18)
    assert find_mention(text, "Ann Lee", set()) == (15, 23)
    assert find_mention(text, "北京", set()) == (text.index("北京"), text.index("北京") + 2)
    assert find_mention(text, "nn", set()) == (1, 3)  # only a part of a word
    assert find_mention(text, "Bo", set()) is None and find_mention(text, " ", set()) is None
    assert find_mention(text, "Lee", {(20, 23)}) == (20, 23)


def test_pieces_of_nested_crossing_and_discontinuous_marks() -> None:
    marks = [Mark(((0, 10),), 0), Mark(((4, 10),), 1), Mark(((8, 12),), 2), Mark(((2, 4), (13, 14)), 3)]
    pieces = text_pieces(16, marks)
    assert [(each.start, each.end) for each in pieces] == [
        (0, 2), (2, 4), (4, 8), (8, 10), (10, 12), (12, 13), (13, 14), (14, 16),
    ]  # fmt: skip
    under = [{mark.outcome for _, mark in each.marks} for each in pieces]
    assert under == [{0}, {0, 3}, {0, 1}, {0, 1, 2}, {2}, set(), {3}, set()]
    assert [mark.outcome for each in pieces for mark in each.ending] == [0, 1, 2, 3]
    assert all(len({lane for lane, _ in each.marks}) == len(each.marks) for each in pieces)
    crowded = text_pieces(9, [Mark(((0, 9),), number) for number in range(50)])
    assert len(crowded) == 1 and len(crowded[0].marks) == MAX_LANES


class Tags(HTMLParser):
    """Collects the tags and attributes of a page, and checks that tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_escaped_self_contained_and_bounded() -> None:
    evil = '</script><img src=x onerror="alert(1)">'
    rows = [row({evil: ["Ann"], "b": [evil]}, {"a": ["Ann"], evil: ["Bo"]}, f"Ann {evil} Bo", "ner")] * 5
    rows.append(row("<b>" + "[" * 5000, {"a": ["Ann"]}, "x" * 30_000))
    rows.append(row({"a": [f"n{number}" for number in range(3000)]}, {"a": []}, "Ann"))
    rows.append(row({"a": ["Ann"]}, {"a": ["Ann"]}, "Ann"))
    parsed = [number != 5 for number in range(len(rows))]
    page = page_html(rows, parsed, 100, "<file>")
    tags = Tags(page)
    assert not tags.open
    assert not [tag for tag, _ in tags.found if tag in ("img", "link", "iframe", "b ")]
    assert not [
        key for _, attributes in tags.found for key in attributes if key.startswith("on") or key in ("src", "href")
    ]
    assert [tag for tag, _ in tags.found].count("script") == 1 and "http" not in re.sub(r"http-equiv", "", page)
    assert [tag for tag, _ in tags.found].count("article") == 7
    assert "&lt;file&gt;: 7 of 8 rows have errors; 7 are shown." in page and "共" not in page
    assert len(page) < 200_000
    assert [tag for tag, _ in Tags(page_html(rows, parsed, 2, "f")).found].count("article") == 2
    Tags(page_html([], [], 2, "f"))


def test_page_shows_status_by_colour_line_and_symbol_in_both_languages() -> None:
    gold = {"person": ["Ann", "Bo"], "place": ["Oslo"]}
    page = page_html(
        [row({"person": ["Oslo", "Cy"], "place": []}, gold, "Ann, Bo and Cy in Oslo", "ner")], [True], 9, "f"
    )
    for status, symbol, chinese in ((WRONG_TYPE, "≠", "类型错误"), (MISSED, "−", "遗漏"), (SPURIOUS, "+", "多余")):
        name = status.replace(" ", "-")
        assert f'{symbol} <span lang="en">{status}</span><span lang="zh">{chinese}</span>' in page
        assert f'class="tag {name}"' in page and f"var(--m-{name})" in page and f"--m-{name}: " in page
    assert "≠ place → person" in page
    chinese = page_html([row({"人物": []}, {"人物": ["安妮"]}, "安妮在北京。", "ner")], [True], 9, "f")
    assert '<html lang="zh">' in chinese and '<html lang="en">' in page


@pytest.mark.integration
def test_page_filters_and_switches_in_a_browser(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    rows = [
        row({"person": ["Oslo"]}, {"place": ["Oslo"]}, "Oslo <b>", "ner"),
        row({"org": []}, {"org": ["Ox"]}, "Ox", "ner"),
    ]
    (tmp_path / "page.html").write_text(page_html(rows, [True, True], 9, "f"), encoding="utf-8")
    executable = next(
        (path for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(path).exists()), None
    )
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        except playwright.Error:
            pytest.skip("no Chromium is installed")
        page, faults = browser.new_page(), list[str]()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto((tmp_path / "page.html").as_uri())
        assert page.locator("article:visible").count() == 2
        page.select_option("#type", label="org")
        assert page.locator("article:visible").inner_text().startswith("Row 2")
        page.click("#switch")
        assert page.locator("article:visible").inner_text().startswith("第2行")
        page.select_option("#type", value="")
        page.uncheck("input[data-status=missed]")
        assert page.locator("li:visible").count() == 1
        browser.close()
    assert not faults


@pytest.mark.parametrize("name", HOSTILE)
def test_reports_of_a_hostile_prediction_take_linear_time(name: str) -> None:
    started = time.process_time()
    for task, gold in (("", {"a": ["Ann"]}), ("ee", {"a": [{"trigger": "Ann", "arguments": {}}]}), ("kg", {"a": {}})):
        rows = [row(HOSTILE[name], gold, "Ann wrote Dusk. " * 2000, task)]
        confusion_svg(confusions(rows)).encode()
        page = page_html(rows, [True], 5, "f")
        page.encode()
        assert len(page) < 300_000
    assert time.process_time() - started < 8  # a quadratic algorithm takes minutes
