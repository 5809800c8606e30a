"""The knowledge graph of the quick start's made-up world, and sentences that state its facts.

Every name is composed of parts (world_names.py). The held-out graph has names that occur nowhere in training.
"""

import random
from dataclasses import dataclass, field

from demo_world.world_names import NamePool

LANGUAGES = ("en", "zh")
SAME_SUBJECT = 0.6  # probability that the next fact of a text is about its first subject


@dataclass(frozen=True)
class Relation:
    """A relation: kinds of subject and object; label and sentences ({s} subject, {o} object) by language."""

    subject: str
    object: str
    label: dict[str, str]
    sentences: dict[str, tuple[str, ...]]


RELATIONS = {
    "birth_place": Relation(
        "person", "place", {"en": "born in", "zh": "出生地"},
        {"en": ("{s} was born in {o}.", "{s} grew up in {o}, the place of birth.", "The birthplace of {s} is {o}.",
                "Born in {o}, {s} soon left home."),
         "zh": ("{s}出生于{o}。", "{s}的家乡是{o}。", "{o}是{s}的出生地。", "{s}生在{o}，后来离开了家。")},
    ),
    "employer": Relation(
        "person", "organisation", {"en": "works for", "zh": "任职"},
        {"en": ("{s} works for {o}.", "{s} has a post at {o}.", "{o} employs {s}.",
                "Since last year {s} has been at {o}."),
         "zh": ("{s}在{o}工作。", "{s}任职于{o}。", "{o}聘请了{s}。", "去年起，{s}就职于{o}。")},
    ),
    "author": Relation(
        "person", "work", {"en": "wrote", "zh": "著作"},
        {"en": ("{s} wrote {o}.", "{o} is a book by {s}.", "The author of {o} is {s}.", "{s} is known for {o}."),
         "zh": ("{s}写了{o}。", "{o}的作者是{s}。", "{o}是{s}的作品。", "{s}以{o}闻名。")},
    ),
    "seat": Relation(
        "organisation", "place", {"en": "based in", "zh": "总部"},
        {"en": ("{s} is based in {o}.", "{s} has its seat in {o}.", "In {o} stands the main house of {s}.",
                "The offices of {s} are in {o}."),
         "zh": ("{s}的总部在{o}。", "{s}设在{o}。", "{o}有{s}的总部。", "{s}位于{o}。")},
    ),
    "capital": Relation(
        "place", "place", {"en": "capital", "zh": "首府"},
        {"en": ("The capital of {s} is {o}.", "{s} is governed from {o}, its capital.", "{o} is the capital of {s}."),
         "zh": ("{s}的首府是{o}。", "{o}是{s}的首府。", "{s}以{o}为首府。")},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    subject: str
    relation: str  # a key of RELATIONS
    object: str


@dataclass
class FactGraph:
    """The training or held-out facts of one language; a subject has at most one object for each relation."""

    language: str
    facts: list[Fact] = field(default_factory=list)
    about: dict[str, list[Fact]] = field(default_factory=dict)  # name -> the facts that mention it

    def add(self, fact: Fact) -> None:
        self.facts.append(fact)
        for name in (fact.subject, fact.object):
            self.about.setdefault(name, []).append(fact)


def build_graph(names: NamePool, language: str, people: int, draw: random.Random) -> FactGraph:
    """Return a graph of `people` people, each with a birth place, an employer and a book.

    For thirty people there are six places, three organisations and ten books.
    """
    places = [names.new("place", language) for _ in range(max(people // 5, 4))]
    organisations = [names.new("organisation", language) for _ in range(max(people // 10, 2))]
    works = [names.new("work", language) for _ in range(max(people // 3, 2))]
    graph = FactGraph(language)
    for country, capital in zip(places[::2], places[1::2], strict=False):
        graph.add(Fact(country, "capital", capital))
    for organisation in organisations:
        graph.add(Fact(organisation, "seat", draw.choice(places)))
    for _ in range(people):
        person = names.new("person", language)
        graph.add(Fact(person, "birth_place", draw.choice(places)))
        graph.add(Fact(person, "employer", draw.choice(organisations)))
        graph.add(Fact(person, "author", draw.choice(works)))
    return graph


def walk(graph: FactGraph, count: int, draw: random.Random) -> list[Fact]:
    """Return up to `count` distinct facts, each with the first subject or a name that an earlier fact mentions."""
    facts = [draw.choice(graph.facts)]
    subject = facts[0].subject
    while len(facts) < count:
        same = [fact for fact in graph.about[subject] if fact.subject == subject and fact not in facts]
        nearby = [f for fact in facts for name in (fact.subject, fact.object) for f in graph.about[name][:8]]
        fresh = [fact for fact in nearby if fact not in facts]
        if same and draw.random() < SAME_SUBJECT:
            fresh = same
        if not fresh:
            break
        facts.append(draw.choice(fresh))
    return facts


def sentence(fact: Fact, language: str, draw: random.Random) -> str:
    """Return a random sentence that states the fact."""
    template = draw.choice(RELATIONS[fact.relation].sentences[language])
    return template.format(s=fact.subject, o=fact.object)


def prose(facts: list[Fact], language: str, draw: random.Random) -> str:
    """Return one sentence for each fact, as one paragraph."""
    return (" " if language == "en" else "").join(sentence(fact, language, draw) for fact in facts)
