"""literal_values: dates and numbers of English and Chinese text, compared by value, in linear time."""

import time

import pytest
from literal_values.literal_mentions import find_literals, is_date, literal_keys

SAME_DATE = (
    "2019-11-20", "2019/11/20", "2019.11.20", "20 November 2019", "20th of November, 2019", "Nov. 20, 2019",
    "November 20th, 2019", "2019年11月20日", "2019 年 11 月 20 日", "二〇一九年十一月二十日", "２０１９年１１月２０号",
    "+2019-11-20T00:00:00Z", '"2019-11-20"^^<http://www.w3.org/2001/XMLSchema#date>',
)  # fmt: skip
NUMBERS = {
    "30000": ("30000", "30,000", "3万", "3 万", "三万", "30 thousand", "thirty thousand", "３万"),
    "120000000": ("1亿2000万", "120,000,000", "1.2亿", "120 million", "一亿两千万"),
    "250": ("二百五", "二百五十", "250", "two hundred and fifty"),
    "305": ("三百零五", "three hundred and five"),
    "21": ("二十一", "twenty-one", "21"),
    "3.5": ("3.5", "三点五"),
    "-5": ("-5", "−5"),
}


@pytest.mark.parametrize("text", SAME_DATE)
def test_forms_of_a_date_have_the_same_value(text: str) -> None:
    assert literal_keys(text) == {"d 2019-11-20"}


@pytest.mark.parametrize(("value", "texts"), NUMBERS.items())
def test_forms_of_a_number_have_the_same_value(value: str, texts: tuple[str, ...]) -> None:
    assert [literal_keys(text) for text in texts] == [{f"n {value}"}] * len(texts)


@pytest.mark.parametrize(
    ("text", "key"),
    [("165 cm", "n 165 cm"), ("165厘米", "n 165 cm"), ("百分之五", "n 5 %"), ("5%", "n 5 %"),
     ("$5 million", "n 5000000 USD"), ("500万美元", "n 5000000 USD"), ("221 BC", "d -221"),
     ("公元前221年", "d -221"), ("2019年11月", "d 2019-11")],
)  # fmt: skip
def test_units_and_incomplete_dates_have_a_value(text: str, key: str) -> None:
    assert literal_keys(text) == {key}


@pytest.mark.parametrize("text", ["", "万", "三四百", "2019-13-45", "Feb. 30, 2019", "11/20/2019", "Oslo", "1" * 100])
def test_text_that_is_not_a_date_or_number_has_no_value(text: str) -> None:
    assert not literal_keys(text)


def test_bare_year_is_a_year_and_a_number_and_a_date_includes_its_year() -> None:
    assert literal_keys("1879") == {"d 1879", "n 1879"} and is_date(literal_keys("1879"))
    found = find_literals("born on 14 March 1879; 26 papers in 1905, version 1.2.3, x3")
    assert [("born on 14 March 1879; 26 papers in 1905"[one.start : one.end], set(one.keys)) for one in found[:4]] == [
        ("14 March 1879", {"d 1879-03-14"}), ("1879", {"d 1879"}), ("26", {"n 26"}), ("1905", {"d 1905", "n 1905"}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "part", ["1", "一", "two ", "1,", "2019年", "2019-", "May ", "1 ", "-", "May 1879 ", "$ ", "百分之"]
)
def test_time_is_linear_in_the_length(part: str) -> None:
    def seconds(length: int) -> float:
        """Return the shortest time of three runs, since garbage collection can take longer than a run."""
        text, times = part * (length // len(part)), []
        for _ in range(3):
            start = time.process_time()
            find_literals(text)
            times.append(time.process_time() - start)
        return min(times)

    assert seconds(40_000) < 0.05 + 8 * seconds(10_000)
