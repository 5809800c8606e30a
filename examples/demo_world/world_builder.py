"""Write the quick start's data: documents and extraction instructions about a small made-up world.

Output files:
    en.jsonl, zh.jsonl                               generated documents
    real.jsonl                                       real text: data_path, else the source of Python's standard library
    train.jsonl, heldout.jsonl                       instruction rows
    extraction.json                                  the wording of the instructions, by task and language
    train_annotated.jsonl, heldout_annotated.jsonl   annotations of the rows, for finetune/ie_build.py
    types.json                                       the entity and relation types of the annotations
    graph/                                           the facts as a knowledge graph, with texts (world_graph.py)
    prompts.jsonl                                    with template_path: training rows rendered with that template, as
                                                     text for the tokenizer

The held-out rows have names that occur nowhere else, so that a model can only copy them from the input. To teach
copying, documents state each fact twice, in prose and as lines or JSON.
"""

import json
import random
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median_low
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from json_rows.row_files import iterate_texts
from partial_folders.atomic_outputs import new_folder
from partial_folders.output_paths import folder_path

from demo_world.world_facts import LANGUAGES, RELATIONS, Fact, facts_as_prose, make_facts, partition_names, sample_facts
from demo_world.world_graph import write_graph

FACT_LINES = {"en": '"{s}" {r} "{o}"', "zh": "（{s}，{r}，{o}）"}
HEADINGS = {"en": ("In short:", "Facts:", "Summary:"), "zh": ("简要：", "事实：", "概要：")}
INSTRUCTIONS = {
    "ner": {"en": "Extract the entities.", "zh": "抽取实体。"},
    "re": {"en": "Extract the relations.", "zh": "抽取关系。"},
}
TYPE_NAMES = {
    "en": {"person": "person", "place": "place", "organisation": "organisation", "work": "work"},
    "zh": {"person": "人物", "place": "地点", "organisation": "机构", "work": "作品"},
}


def entities_of(facts: list[Fact], language: str) -> dict[str, list[str]]:
    """Return type name -> distinct names in the order of their first mention."""
    names_by_type: dict[str, list[str]] = {}
    for fact in facts:
        relation = RELATIONS[fact.relation]
        for kind, name in ((relation.subject, fact.subject), (relation.object, fact.object)):
            names = names_by_type.setdefault(TYPE_NAMES[language][kind], [])
            if name not in names:
                names.append(name)
    return names_by_type


def relations_of(facts: list[Fact], language: str) -> dict[str, list[dict[str, str]]]:
    """Return relation label -> {"subject", "object"} objects."""
    pairs_by_label: dict[str, list[dict[str, str]]] = {}
    for fact in facts:
        pair = {"subject": fact.subject, "object": fact.object}
        pairs_by_label.setdefault(RELATIONS[fact.relation].label[language], []).append(pair)
    return pairs_by_label


def annotation(facts: list[Fact], language: str, text: str) -> dict[str, Any]:
    """Return the annotation of `text`, with the keys of CrossNER and a list of relations."""
    entities, relations = entities_of(facts, language), relations_of(facts, language)
    return {
        "sentence": text,
        "entity_list": [{"name": name, "type": kind} for kind, names in entities.items() for name in names],
        "relation_list": [{"relation": label, **pair} for label, pairs in relations.items() for pair in pairs],
    }


def annotation_types() -> dict[str, dict[str, list[str]]]:
    """Return all types of annotations: {"entity": {language: names}, "relation": {language: names}}."""
    return {
        "entity": {language: list(TYPE_NAMES[language].values()) for language in LANGUAGES},
        "relation": {language: [relation.label[language] for relation in RELATIONS.values()] for language in LANGUAGES},
    }


def facts_as_list(facts: list[Fact], language: str, rng: random.Random) -> str:
    """Return the facts as lines, or their entities or relations as JSON.

    The JSON is nested in an outer object, which the answers to instructions do not have.
    """
    form = rng.choice(("lines", "lines", "entities", "relations"))
    if form == "lines":
        values = [{"s": f.subject, "r": RELATIONS[f.relation].label[language], "o": f.object} for f in facts]
        return "\n".join(FACT_LINES[language].format(**value) for value in values)
    content = (entities_of if form == "entities" else relations_of)(facts, language)
    return json.dumps({form: content}, ensure_ascii=False)


def document(facts: list[Fact], language: str, rng: random.Random) -> str:
    """Return a title, the facts in prose, a heading, and the facts as lines or JSON; in 30 % of cases, prose again."""
    prose, listed = facts_as_prose(facts, language, rng), facts_as_list(facts, language, rng)
    parts = [facts[0].subject, prose, rng.choice(HEADINGS[language]), listed]
    if rng.random() < 0.3:
        parts.append(facts_as_prose(facts, language, rng))
    return "\n".join(parts)


def real_documents(data_path: str, budget: int) -> Iterator[str]:
    """Yield about `budget` characters of texts from data_path, or else from the source of Python's standard library.

    Each text is truncated to 4,000 characters.
    """
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    sources = (file.read_text(encoding="utf-8", errors="ignore") for file in files)
    for text in iterate_texts(data_path) if data_path else sources:
        if budget <= 0:
            return
        yield text[:4000]
        budget -= len(text[:4000])


def instruction_row(facts: list[Fact], language: str, text: str, rng: random.Random) -> dict[str, str]:
    """Return {"instruction", "input", "output"}; the output is the entities or relations of the text as JSON."""
    task = rng.choice(("ner", "re", "re"))
    answer = (entities_of if task == "ner" else relations_of)(facts, language)
    instruction = INSTRUCTIONS[task][language]
    return {"instruction": instruction, "input": text, "output": json.dumps(answer, ensure_ascii=False)}


def extraction_wording(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Return the content of extraction.json: instruction and median input length (characters) by task and language."""
    tasks: dict[str, Any] = {}
    for task, instructions in INSTRUCTIONS.items():
        for language, instruction in instructions.items():
            lengths = [len(row["input"]) for row in rows if row["instruction"] == instruction]
            usual = {"text_characters": median_low(lengths)} if lengths else {}
            tasks.setdefault(task, {})[language] = {"instruction": instruction, **usual}
    return {"tasks": tasks}


def render_examples(rows: list[dict[str, str]], template_path: str) -> Iterator[str]:
    """Yield each row as text, rendered with a template, without BOS and EOS."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers renders
    template = environment.from_string(Path(template_path).read_text(encoding="utf-8"))
    for row in rows:
        question = {"role": "user", "content": row["instruction"], "input": row["input"]}
        answer = {"role": "assistant", "content": row["output"]}
        yield template.render(messages=[question, answer], bos_token="", eos_token="")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def make_world(
    output_dir: str,
    people: int = 2400,
    documents_per_language: int = 20000,
    rows: int = 10000,
    heldout_rows: int = 200,
    real_megabytes: float = 1.0,
    data_path: str = "",
    template_path: str = "",
    seed: int = 0,
) -> None:
    """Write the output files to the new folder output_dir; one half of the rows is English, the other Chinese."""
    folder_path(output_dir)
    sizes = {
        "people": people, "documents_per_language": documents_per_language, "rows": rows, "heldout_rows": heldout_rows,
        "real_megabytes": real_megabytes,
    }  # fmt: skip
    for option, size in sizes.items():
        lowest = 2 if option in ("rows", "heldout_rows") else 0  # a row in each language
        if size < lowest:
            raise ValueError(f"--{option} {size} is too small; it must be at least {lowest}")
    for option, path in (("data_path", data_path), ("template_path", template_path)):
        if path and not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist; --{option} takes an existing file")
    rng = random.Random(seed)
    training_names, held_out_names = partition_names(rng)
    training = {language: make_facts(training_names, language, people, rng, "--people") for language in LANGUAGES}
    held_out = {
        language: make_facts(held_out_names, language, heldout_rows // 2, rng, "--heldout_rows")
        for language in LANGUAGES
    }

    with new_folder(output_dir, 0) as scratch:
        for language, subjects in training.items():
            counts = (rng.choice((1, 2, 2, 3)) for _ in range(documents_per_language))
            texts = (document(sample_facts(subjects, count, rng), language, rng) for count in counts)
            write_jsonl(scratch / f"{language}.jsonl", ({"text": text} for text in texts))
        real = real_documents(data_path, int(real_megabytes * 1e6))
        write_jsonl(scratch / "real.jsonl", ({"text": text} for text in real))
        for name, world, total in (("train", training, rows), ("heldout", held_out, heldout_rows)):
            pairs = []
            for language, subjects in world.items():
                for _ in range(total // 2):
                    facts = sample_facts(subjects, rng.choice((1, 1, 2)), rng)
                    text = facts_as_prose(facts, language, rng)
                    pairs.append((instruction_row(facts, language, text, rng), annotation(facts, language, text)))
            rng.shuffle(pairs)
            instructions, annotations = zip(*pairs, strict=True)
            write_jsonl(scratch / f"{name}.jsonl", instructions)
            write_jsonl(scratch / f"{name}_annotated.jsonl", annotations)
            if name == "train":
                write_jsonl(scratch / "extraction.json", [extraction_wording(instructions)])
            if name == "train" and template_path:
                prompts = render_examples(instructions[:4000], template_path)
                write_jsonl(scratch / "prompts.jsonl", ({"text": text} for text in prompts))
        write_jsonl(scratch / "types.json", [annotation_types()])
        write_graph(scratch / "graph", training, TYPE_NAMES, rows // 2, seed)
    print(
        f"{output_dir}: {documents_per_language} documents in each language, {rows // 2 * 2} training rows, "
        f"{heldout_rows // 2 * 2} held-out rows"
    )
