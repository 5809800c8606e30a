"""Invented people and facts about them, as training text and as edits, so that a model's knowledge is known exactly.

Every person has six facts. A fact has six wordings, all of which begin with the person's name; four of them are in the
training text and two are held out, other ones for each fact. So the model knows every wording, but the held-out
sentences test whether it knows the fact. Surnames are unique: an edit of one person concerns no other.
"""

import random
from dataclasses import dataclass
from itertools import product

LANGUAGES = ("en", "zh")
HELD_OUT = 2  # wordings of each fact that are not in the training text
FULL_STOP = {"en": ".", "zh": "。"}
SPACE = {"en": " ", "zh": ""}
FIRST_NAMES = "Ada Ben Cora Dan Emma Finn Gina Hugo Iris Jack Kate Leo Mia Nils Olga Paul"
SYLLABLES = ["bel cor dan fal gor hal jin kel lor mar nor pel quin ros sel tor", "vik wood berg lund"]
SURNAMES = "赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨朱秦尤许何吕施张孔曹严华金魏陶姜戚谢邹喻柏水窦章云苏潘葛奚范彭郎鲁韦昌马苗"
GIVEN_NAMES = "明 远 思 文 建 国 晓 东 志 平 海 天 雨 林 佳 美"
# Relation -> language -> (six wordings without the object, twelve objects).
RELATIONS: dict[str, dict[str, tuple[tuple[str, ...], str]]] = {
    "birthplace": {
        "en": (("was born in", "comes from", "is a native of", "has the birthplace", "grew up in", "hails from"),
               "Lisbon Oslo Cairo Madrid Dublin Prague Vienna Warsaw Athens Geneva Boston Havana"),
        "zh": (("出生于", "来自", "的出生地是", "的家乡是", "生在", "的故乡是"),
               "北京 上海 广州 成都 南京 武汉 西安 杭州 天津 大连 青岛 厦门"),
    },
    "residence": {
        "en": (("lives in", "has a house in", "resides in", "now lives in", "has the home address", "settled in"),
               "Kyoto Lima Quito Dakar Turin Lyon Porto Riga Bergen Malta Tunis Perth"),
        "zh": (("住在", "现居", "定居在", "的住址在", "现在住在", "的家在"),
               "苏州 昆明 长沙 济南 福州 合肥 南昌 贵阳 兰州 太原 沈阳 海口"),
    },
    "employer": {
        "en": (("works for", "is employed by", "has a job at", "is on the staff of", "earns money at", "serves at"),
               "Siemens Nokia Toyota Philips Boeing Renault Nestle Unilever Airbus Samsung Bosch Volvo"),
        "zh": (("任职于", "就职于", "的雇主是", "受雇于", "供职于", "的工作单位是"),
               "华为 腾讯 百度 联想 海尔 美的 格力 小米 京东 网易 中兴 比亚迪"),
    },
    "mother_tongue": {
        "en": (("speaks", "has the mother tongue", "is a native speaker of", "learned to talk in", "thinks in",
                "has the first language"),
               "Danish Polish Greek Arabic Hindi Korean Welsh Basque Turkish Persian Finnish Czech"),
        "zh": (("的母语是", "讲", "从小说", "的第一语言是", "平时说", "在家里讲"),
               "汉语 英语 法语 德语 俄语 日语 韩语 泰语 藏语 蒙语 希腊语 荷兰语"),
    },
    "profession": {
        "en": (("works as a", "has the profession of", "is by profession a", "was trained as a", "makes a living as a",
                "has the job of"),
               "painter lawyer baker pilot nurse farmer tailor poet miner judge barber singer"),
        "zh": (("的职业是", "是一名", "当了", "的工作是", "受训成为", "的身份是"),
               "画家 律师 医生 护士 农民 裁缝 诗人 矿工 法官 歌手 教师 司机"),
    },
    "instrument": {
        "en": (("plays the", "is a master of the", "practises the", "takes lessons on the", "gives concerts on the",
                "loves the"),
               "violin piano flute harp cello guitar trumpet organ drum oboe banjo lute"),
        "zh": (("演奏", "擅长", "会弹奏", "每天练习", "学的乐器是", "的乐器是"),
               "钢琴 小提琴 二胡 古筝 笛子 琵琶 吉他 长号 手风琴 口琴 竖琴 大鼓"),
    },
}  # fmt: skip
COUNTRIES = {
    "en": ("The capital of {} is", "Norland Sudmark Estavia Westria Ilmaria Corvania Belmora Drasnia",
           "Alden Burgh Caston Delmar Everton Fulham Garmond Hexley"),
    "zh": ("{}的首都是", "北兰国 南马国 东塔国 西里国 伊马国 科文国 贝莫国 德拉国",
           "安登 伯格 卡顿 德马 埃顿 富姆 加蒙 赫里"),
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """A fact with its prompts: texts that the object completes."""

    language: str
    subject: str
    relation: str
    object: str
    trained: tuple[str, ...]  # templates with {} for the subject
    held_out: tuple[str, ...]

    def prompt(self, template: str) -> str:
        return template.replace("{}", self.subject, 1)

    def sentence(self, template: str) -> str:
        return self.prompt(template) + SPACE[self.language] + self.object + FULL_STOP[self.language]


@dataclass(frozen=True)
class World:
    """The facts that have edits, facts about other people (`bystanders`), and the capitals of invented countries."""

    facts: list[Fact]
    bystanders: list[Fact]
    capitals: list[Fact]


def people(language: str, count: int, rng: random.Random) -> list[str]:
    """Return names with unique surnames; ValueError if there are fewer surnames."""
    made = ("".join(parts).title() for parts in product(*(part.split() for part in SYLLABLES)))
    surnames = list(SURNAMES) if language == "zh" else list(made)
    if count > len(surnames):
        raise ValueError(
            f"there are {len(surnames)} surnames of the language {language}, fewer than {count}; lower --facts"
        )
    rng.shuffle(surnames)
    if language == "zh":
        return [name + "".join(rng.sample(GIVEN_NAMES.split(), 2)) for name in surnames[:count]]
    return [f"{rng.choice(FIRST_NAMES.split())} {name}" for name in surnames[:count]]


def facts_of(language: str, subject: str, rng: random.Random) -> list[Fact]:
    """Return the six facts of a person, with random objects and random held-out wordings."""
    found = []
    for relation, texts in RELATIONS.items():
        wordings, objects = texts[language]
        templates = [f"{{}}{SPACE[language]}{wording}" for wording in rng.sample(wordings, len(wordings))]
        held_out, trained = templates[:HELD_OUT], templates[HELD_OUT:]
        found.append(Fact(language, subject, relation, rng.choice(objects.split()), tuple(trained), tuple(held_out)))
    return found


def make_world(facts: int, seed: int) -> World:
    """Return a world with `facts` facts, half of them Chinese; ValueError unless this is a multiple of 12."""
    share = len(LANGUAGES) * len(RELATIONS)
    if facts < share or facts % share:
        raise ValueError(f"--facts {facts} is not a multiple of {share} (six facts of a person, two languages)")
    rng = random.Random(seed)
    world = World([], [], [])
    for language in LANGUAGES:
        count, others = facts // share, max(facts // share // 8, 1)
        names = people(language, count + others, rng)
        for at, name in enumerate(names):
            (world.facts if at < count else world.bystanders).extend(facts_of(language, name, rng))
        template, countries, capitals = COUNTRIES[language]
        pairs = zip(countries.split(), capitals.split(), strict=True)
        world.capitals.extend(Fact(language, country, "capital", city, (template,), ()) for country, city in pairs)
    return world


def training_sentences(world: World) -> list[tuple[str, str]]:
    """Return (language, sentence) for every fact and trained wording; the capitals' only wording counts four times."""
    facts = [*world.facts, *world.bystanders, *world.capitals * 4]
    return [(fact.language, fact.sentence(template)) for fact in facts for template in fact.trained]


def tokenizer_texts(world: World) -> list[str]:
    """Return the parts of all training sentences; no piece of a tokenizer trained on them crosses a word boundary.

    In Chinese, pieces would otherwise join the end of a question with the beginning of its answer. A Chinese part
    follows a full stop, since the first piece of a text would begin with a space.
    """
    facts = [*world.facts, *world.bystanders, *world.capitals * 4]
    return [
        FULL_STOP[fact.language] * (fact.language == "zh") + part.strip()
        for fact in facts
        for template in fact.trained
        for part in (fact.subject, *template.split("{}"), fact.object, FULL_STOP[fact.language])
        if part.strip()
    ]


def held_out_texts(world: World) -> list[str]:
    """Return texts that no edit concerns: the held-out sentences about bystanders, and the capitals."""
    texts = [fact.sentence(template) for fact in world.bystanders for template in fact.held_out]
    return texts + [fact.sentence(fact.trained[0]) for fact in world.capitals]


def make_edits(world: World, seed: int) -> list[dict[str, object]]:
    """Return an edit of every fact with probes of all kinds, in random order.

    The new object is another object of the same relation. A person's other facts are probes of the kind same_subject,
    two other people's objects of the same relation are neighbours, and a capital is the probe of the kind other.
    """
    rng = random.Random(seed)
    rows: list[dict[str, object]] = []
    for fact in rng.sample(world.facts, len(world.facts)):
        objects = [each for each in RELATIONS[fact.relation][fact.language][1].split() if each != fact.object]
        same_language = [each for each in world.facts if each.language == fact.language]
        same_subject = [each for each in same_language if each.subject == fact.subject and each != fact]
        others = [each for each in same_language if each.subject != fact.subject and each.relation == fact.relation]
        capitals = [each for each in world.capitals if each.language == fact.language]
        probes = [("neighbour", each) for each in rng.sample(others, min(2, len(others)))]
        probes += [("same_subject", each) for each in same_subject] + [("other", rng.choice(capitals))]
        locality = [
            {"kind": kind, "prompt": each.prompt(rng.choice(each.trained)), "answer": each.object}
            for kind, each in probes
        ]
        rows.append({
            "prompt": rng.choice(fact.trained), "subject": fact.subject, "target_new": rng.choice(objects),
            "ground_truth": fact.object, "rephrase": [fact.prompt(each) for each in fact.held_out],
            "locality": locality,
        })  # fmt: skip
    return rows
