"""Generate the made-up world of the quick start: names, facts about them, and sentences that state the facts.

Every name is composed of parts. A tenth of all possible names is held out; these names occur nowhere in training.
"""

import random
from itertools import product
from typing import NamedTuple

LANGUAGES = ("en", "zh")
HELD_OUT_SHARE = 0.1  # share of all possible names

# (language, kind) -> format of a name, and the choices of each part. The lists are short, so that a small model sees
# each part often. A held-out name is a new combination of parts that occur in training.
NAMES = {
    ("en", "person"): (
        "{} {}{}",
        "Ada Ben Carl Dora Emil Flora Gina Hugo Ida Jack Karl Lena Max Nora Olga Paul Rosa Sam Tina Vera",
        "Bran Cal Dar Bel Ful Gar Har Hol Kel Lang Mar Nor Pal Stan",
        "son man ley den low more ner sey ris ster",
    ),
    ("en", "place"): (
        "{} {}{}",
        "Upper Lower New Old Great Little East West",
        "Ash Birch Cedar Crow Deer Elm Fern Fox Gold Hawk King Oak",
        "bridge bury cliff dale field ford gate haven land port stead wick",
    ),
    ("en", "organisation"): (
        "{} {} {}",
        "Acme Apex Atlas Comet Delta Echo Galaxy Iris Jade Lotus Orion Titan",
        "Steel Paper Glass Salt Grain Cotton Coal Sugar",
        "Bank Press Institute Company Museum College Radio Railway",
    ),
    ("en", "work"): (
        "The {} {} of {}",
        "Blue Dark Empty First Frozen Hidden Iron Lost Red Silent",
        "Bell Boat Castle Crown Dream Garden Island Letter Map River",
        "January March April May June July August October November December",
    ),
    ("zh", "person"): (
        "{}{}{}",
        "王 李 张 刘 陈 杨 黄 赵 周 吴 徐 孙 马 胡",
        "明 建 志 国 晓 文 子 思 天 佳 美 俊 永 海",
        "勇 平 英 伟 强 军 杰 涛 辉 鹏 丽 婷 敏 静 娜 芳",
    ),
    ("zh", "place"): (
        "{}{}{}",
        "东 西 南 北 上 新 长 大",
        "安 宁 清 青 广 太 临 石 金 松 柳 桐",
        "阳市 州市 昌市 泉市 山市 港市 溪县 川县 江县 河县 桥镇 湾镇",
    ),
    ("zh", "organisation"): (
        "{}{}{}",
        "华 信 恒 鼎 瑞 宏 盛 荣 富 利 同 和",
        "达 飞 创 基 域 诚 丰 通 源 康 健 德",
        "公司 银行 医院 大学",
    ),
    ("zh", "work"): (
        "《{}{}{}》",
        "秋 夜 月 风 雨 花 雪 云 星 梦",
        "归 落 听 寻 望 问 忆 别 逢 照",
        "人 客 心 门 窗 路 船 歌 楼 城",
    ),
}


class RelationWording(NamedTuple):
    """A relation between a subject and an object.

    subject, object: the kinds of their names. label, sentences: by language; a sentence has {s} for the subject and {o}
    for the object.
    """

    subject: str
    object: str
    label: dict[str, str]
    sentences: dict[str, tuple[str, ...]]


RELATIONS = {
    "birth_place": RelationWording(
        "person", "place", {"en": "born in", "zh": "出生地"},
        {"en": ("{s} was born in {o}.", "{s} grew up in {o}, the place of birth.", "The birthplace of {s} is {o}.",
                "Born in {o}, {s} soon left home."),
         "zh": ("{s}出生于{o}。", "{s}的家乡是{o}。", "{o}是{s}的出生地。", "{s}生在{o}，后来离开了家。")},
    ),
    "employer": RelationWording(
        "person", "organisation", {"en": "works for", "zh": "任职"},
        {"en": ("{s} works for {o}.", "{s} has a post at {o}.", "{o} employs {s}.",
                "Since last year {s} has been at {o}."),
         "zh": ("{s}在{o}工作。", "{s}任职于{o}。", "{o}聘请了{s}。", "去年起，{s}就职于{o}。")},
    ),
    "author": RelationWording(
        "person", "work", {"en": "wrote", "zh": "著作"},
        {"en": ("{s} wrote {o}.", "{o} is a book by {s}.", "The author of {o} is {s}.", "{s} is known for {o}."),
         "zh": ("{s}写了{o}。", "{o}的作者是{s}。", "{o}是{s}的作品。", "{s}以{o}闻名。")},
    ),
    "seat": RelationWording(
        "organisation", "place", {"en": "based in", "zh": "总部"},
        {"en": ("{s} is based in {o}.", "{s} has its seat in {o}.", "In {o} stands the main house of {s}.",
                "The offices of {s} are in {o}."),
         "zh": ("{s}的总部在{o}。", "{s}设在{o}。", "{o}有{s}的总部。", "{s}位于{o}。")},
    ),
    "capital": RelationWording(
        "place", "place", {"en": "capital", "zh": "首府"},
        {"en": ("The capital of {s} is {o}.", "{s} is governed from {o}, its capital.", "{o} is the capital of {s}."),
         "zh": ("{s}的首府是{o}。", "{o}是{s}的首府。", "{s}以{o}为首府。")},
    ),
}  # fmt: skip


class Fact(NamedTuple):
    subject: str
    relation: str  # a key of RELATIONS
    object: str


Names = dict[tuple[str, str], list[str]]  # (language, kind) -> names


def partition_names(rng: random.Random) -> tuple[Names, Names]:
    """Return (training names, held-out names), a random partition of all possible names."""
    training, held_out = {}, {}
    for key, (form, *parts) in NAMES.items():
        names = [form.format(*chosen) for chosen in product(*(part.split() for part in parts))]
        rng.shuffle(names)
        cut = int(len(names) * HELD_OUT_SHARE)
        held_out[key], training[key] = names[:cut], names[cut:]
    return training, held_out


def make_facts(names: Names, language: str, people: int, rng: random.Random, option: str) -> list[list[Fact]]:
    """Return the facts of each subject: birth place, employer and book of a person, seat of an organisation, a capital.

    The world has a fifth as many places as people, a tenth as many organisations, and a third as many works. Raises
    ValueError if there are too few names. option: the option that sets `people`, for the message.
    """
    counts = {
        "person": people, "place": max(people // 5, 4), "organisation": max(people // 10, 2),
        "work": max(people // 3, 2),
    }  # fmt: skip
    for kind, count in counts.items():
        if count > len(names[language, kind]):
            raise ValueError(f"there are too few names of the kind {kind} ({language}); lower {option}")
    persons, places, organisations, works = (names[language, kind][:count] for kind, count in counts.items())
    pairs = zip(places[::2], places[1::2], strict=False)
    countries = [[Fact(country, "capital", capital)] for country, capital in pairs]
    seats = [[Fact(organisation, "seat", rng.choice(places))] for organisation in organisations]
    objects = {"birth_place": places, "employer": organisations, "author": works}
    lives = [[Fact(person, relation, rng.choice(objects[relation])) for relation in objects] for person in persons]
    return [*countries, *seats, *lives]


def sample_facts(subjects: list[list[Fact]], count: int, rng: random.Random) -> list[Fact]:
    """Return up to `count` facts about one or, in a third of the cases, two random subjects."""
    known = [fact for facts in rng.sample(subjects, rng.choice((1, 1, 2))) for fact in facts]
    return rng.sample(known, min(count, len(known)))


def facts_as_prose(facts: list[Fact], language: str, rng: random.Random) -> str:
    """Return a paragraph with a random sentence for each fact."""
    sentences = [rng.choice(RELATIONS[f.relation].sentences[language]).format(s=f.subject, o=f.object) for f in facts]
    return (" " if language == "en" else "").join(sentences)
