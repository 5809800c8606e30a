"""A small made-up world for the quick start: a knowledge graph, prose about it, and extraction instructions.

    python examples/make_demo.py world --output_dir quickstart/world
    python examples/make_demo.py world --output_dir W --people 8000 --documents 40000 --data_path my_texts.jsonl

Writes the prose en.jsonl and zh.jsonl, real text in real.jsonl (data_path, else the Python library's sources), the
instruction rows train.jsonl and heldout.jsonl with their wording in extraction.json, what their texts say as
annotations for finetune/ie_build.py (train_annotated.jsonl and heldout_annotated.jsonl, line for line, and types.json),
the facts in graph.json, and with --template_path some training rows as that prompt template renders them
(prompts.jsonl, text for the tokenizer).
Every name is put together from a first and a second part. The held-out rows speak of a second graph whose names occur
nowhere else, so a model can give them back only by reading; that is why the documents restate their facts, as lines or
as JSON: what there is to be learnt is copying.
"""

import json
import random
import shutil
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from json_rows.row_files import iterate_texts

from demo_world.world_names import Names, split_names

LANGUAGES = ("en", "zh")
SAME_SUBJECT = 0.6  # how often a text goes on about the same person or thing


# --- facts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relation:
    """A relation: the kinds it joins, and how each language names it and says it ({s} subject, {o} object)."""

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
class Graph:
    """The facts of one language on one side of the split; a subject has at most one object for each relation."""

    language: str
    facts: list[Fact] = field(default_factory=list)
    about: dict[str, list[Fact]] = field(default_factory=dict)  # name -> the facts that mention it

    def add(self, fact: Fact) -> None:
        self.facts.append(fact)
        for name in (fact.subject, fact.object):
            self.about.setdefault(name, []).append(fact)


def build_graph(names: Names, language: str, people: int, draw: random.Random) -> Graph:
    """`people` people, each with birth place, employer and a book; for thirty of them six places, three organisations
    and ten books."""
    places = [names.new("place", language) for _ in range(max(people // 5, 4))]
    organisations = [names.new("organisation", language) for _ in range(max(people // 10, 2))]
    works = [names.new("work", language) for _ in range(max(people // 3, 2))]
    graph = Graph(language)
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


def walk(graph: Graph, count: int, draw: random.Random) -> list[Fact]:
    """Up to `count` different facts: what else there is about the first subject, or whatever mentions a name so far."""
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
    template = draw.choice(RELATIONS[fact.relation].sentences[language])
    return template.format(s=fact.subject, o=fact.object)


def prose(facts: list[Fact], language: str, draw: random.Random) -> str:
    return (" " if language == "en" else "").join(sentence(fact, language, draw) for fact in facts)


# --- documents --------------------------------------------------------------------------------------------------------

FACT_LINES = {"en": '"{s}" {r} "{o}"', "zh": "（{s}，{r}，{o}）"}
HEADINGS = {"en": ("In short:", "Facts:", "Summary:"), "zh": ("简要：", "事实：", "概要：")}


def fact_lines(facts: list[Fact], language: str) -> str:
    """One line for each fact."""
    line = FACT_LINES[language]
    return "\n".join(line.format(s=f.subject, r=RELATIONS[f.relation].label[language], o=f.object) for f in facts)


def record(facts: list[Fact], language: str, draw: random.Random) -> str:
    """The facts or what they mention as JSON, in a wrapper that the answers to instructions do not have."""
    if draw.random() < 0.5:
        return json.dumps({"entities": entities_of(facts, language)}, ensure_ascii=False)
    return json.dumps({"relations": relations_of(facts, language)}, ensure_ascii=False)


def document(facts: list[Fact], language: str, draw: random.Random) -> str:
    """A subject line, the facts in prose, under a heading as lines or as a record, and sometimes once more in prose."""
    listed = fact_lines(facts, language) if draw.random() < 0.5 else record(facts, language, draw)
    parts = [facts[0].subject, prose(facts, language, draw), draw.choice(HEADINGS[language]), listed]
    if draw.random() < 0.3:
        parts.append(prose(facts, language, draw))
    return "\n".join(parts)


def documents(graph: Graph, count: int, draw: random.Random) -> Iterator[str]:
    """Short texts, each about one to three facts."""
    for _ in range(count):
        yield document(walk(graph, draw.choice((1, 2, 2, 3)), draw), graph.language, draw)


def real_documents(data_path: str, text_key: str, budget: int) -> Iterator[str]:
    """About `budget` characters of the user's rows, or of the Python library's sources."""
    if data_path:
        yield from within(budget, iterate_texts(data_path, text_key))
        return
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    yield from within(budget, (file.read_text(encoding="utf-8", errors="ignore") for file in files))


def within(budget: int, texts: Iterator[str]) -> Iterator[str]:
    """Texts (cut at 4,000 characters) until `budget` characters are reached."""
    for text in texts:
        if budget <= 0:
            return
        piece = text[: min(budget, 4000)]
        budget -= len(piece)
        yield piece


# --- instructions -----------------------------------------------------------------------------------------------------

WORDING = {
    "ner": {"en": "Extract the entities.", "zh": "抽取实体。"},
    "re": {"en": "Extract the relations.", "zh": "抽取关系。"},
}


TYPE_NAMES = {
    "en": {"person": "person", "place": "place", "organisation": "organisation", "work": "work"},
    "zh": {"person": "人物", "place": "地点", "organisation": "机构", "work": "作品"},
}


def mentions(facts: list[Fact], language: str) -> list[tuple[str, str]]:
    """The different (type name, name) in the order of their first mention in the facts."""
    found: dict[tuple[str, str], None] = {}
    for fact in facts:
        relation = RELATIONS[fact.relation]
        for kind, name in ((relation.subject, fact.subject), (relation.object, fact.object)):
            found.setdefault((TYPE_NAMES[language][kind], name))
    return list(found)


def entities_of(facts: list[Fact], language: str) -> dict[str, list[str]]:
    """Type name -> names in the order of their first mention in the facts."""
    found: dict[str, list[str]] = {}
    for kind, name in mentions(facts, language):
        found.setdefault(kind, []).append(name)
    return found


def relations_of(facts: list[Fact], language: str) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for fact in facts:
        pair = {"subject": fact.subject, "object": fact.object}
        found.setdefault(RELATIONS[fact.relation].label[language], []).append(pair)
    return found


def annotation(facts: list[Fact], language: str, text: str) -> dict[str, Any]:
    """What `text` says of the facts, with the keys of CrossNER's annotations and a list of relations."""
    return {
        "sentence": text,
        "entity_list": [{"name": name, "type": kind} for kind, name in mentions(facts, language)],
        "relation_list": [
            {"subject": fact.subject, "relation": RELATIONS[fact.relation].label[language], "object": fact.object}
            for fact in facts
        ],
    }


def type_lists() -> dict[str, dict[str, list[str]]]:
    """All types that annotations may have: {"entity": {language: names}, "relation": {language: names}}."""
    return {
        "entity": {language: list(TYPE_NAMES[language].values()) for language in LANGUAGES},
        "relation": {language: [known.label[language] for known in RELATIONS.values()] for language in LANGUAGES},
    }


def rendered(rows: list[dict[str, str]], template_path: str) -> Iterator[str]:
    """Rows as a model reads them, without the control tokens around them."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers renders
    template = environment.from_string(Path(template_path).read_text(encoding="utf-8"))
    for row in rows:
        question = {"role": "user", "content": row["instruction"], "input": row["input"]}
        answer = {"role": "assistant", "content": row["output"]}
        yield template.render(messages=[question, answer], bos_token="", eos_token="")


def instruction_rows(graph: Graph, count: int, draw: random.Random) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Rows {"instruction", "input", "output"}: a text of one or two facts, and what it says as JSON; and the text's
    annotation beside each."""
    for _ in range(count):
        facts = walk(graph, draw.choice((1, 1, 2)), draw)
        task = draw.choice(("ner", "re", "re"))
        answer = (entities_of if task == "ner" else relations_of)(facts, graph.language)
        text = prose(facts, graph.language, draw)
        row = {
            "instruction": WORDING[task][graph.language],
            "input": text,
            "output": json.dumps(answer, ensure_ascii=False),
        }
        yield row, annotation(facts, graph.language, text)


def extraction(rows: Iterable[Mapping[str, str]]) -> dict[str, Any]:
    """What extraction.json says of the rows: how they ask, and how long their texts usually are (the median)."""
    lengths: dict[str, list[int]] = {}
    for row in rows:
        lengths.setdefault(row["instruction"], []).append(len(row["input"]))
    tasks: dict[str, Any] = {}
    for task, said in WORDING.items():
        for language, instruction in said.items():
            length = {"text_characters": median_low(lengths[instruction])} if instruction in lengths else {}
            tasks.setdefault(task, {})[language] = {"instruction": instruction} | length
    return {"tasks": tasks}


# --- files ------------------------------------------------------------------------------------------------------------


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def make_world(
    output_dir: str,
    people: int = 2400,
    documents_per_language: int = 20000,
    rows: int = 10000,
    heldout_rows: int = 200,
    real_megabytes: float = 1.0,
    data_path: str = "",
    text_key: str = "text",
    template_path: str = "",
    seed: int = 0,
) -> None:
    """Write the world into the new folder output_dir; rows and heldout_rows are for both languages together."""
    if Path(output_dir).exists():
        raise ValueError(f"{output_dir} exists already; name a new folder or remove it")
    for option, path in (("data_path", data_path), ("template_path", template_path)):
        if path and not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist; --{option} takes a file that is there")
    draw = random.Random(seed)
    seen_names, held_out_names = split_names(draw)
    seen = {language: build_graph(seen_names, language, people, draw) for language in LANGUAGES}
    held_out = {language: build_graph(held_out_names, language, heldout_rows // 2, draw) for language in LANGUAGES}

    scratch = Path(f"{output_dir}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    counts = {}
    for language, graph in seen.items():
        texts = documents(graph, documents_per_language, draw)
        counts[language] = write_jsonl(scratch / f"{language}.jsonl", ({"text": text} for text in texts))
    real = real_documents(data_path, text_key, int(real_megabytes * 1e6))
    counts["real"] = write_jsonl(scratch / "real.jsonl", ({"text": text} for text in real))
    for name, graphs, total in (("train", seen, rows), ("heldout", held_out, heldout_rows)):
        drawn = [pair for graph in graphs.values() for pair in instruction_rows(graph, total // 2, draw)]
        draw.shuffle(drawn)
        counts[name] = write_jsonl(scratch / f"{name}.jsonl", (row for row, _ in drawn))
        write_jsonl(scratch / f"{name}_annotated.jsonl", (annotated for _, annotated in drawn))
        if name == "train":
            write_json(scratch / "extraction.json", extraction(row for row, _ in drawn))
        if name == "train" and template_path:
            first = [row for row, _ in drawn[:4000]]
            write_jsonl(scratch / "prompts.jsonl", ({"text": text} for text in rendered(first, template_path)))
    write_json(scratch / "types.json", type_lists())
    write_json(
        scratch / "graph.json",
        {
            side: {
                language: [[f.subject, f.relation, f.object] for f in graph.facts] for language, graph in graphs.items()
            }
            for side, graphs in (("train", seen), ("heldout", held_out))
        },
    )
    scratch.replace(output_dir)
    print(f"{output_dir}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
