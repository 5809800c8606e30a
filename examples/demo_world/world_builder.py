"""Write the quick start's data: documents and extraction instructions about a small made-up world.

Output files: documents en.jsonl and zh.jsonl; real.jsonl, real text (data_path, else sources of the Python library);
instruction rows train.jsonl and heldout.jsonl, with their wording in extraction.json; train_annotated.jsonl and
heldout_annotated.jsonl, the annotation of each row for finetune/ie_build.py, with the types in types.json; graph.json,
the facts; and, with template_path, prompts.jsonl, training rows rendered with that template, as text for the tokenizer.

The held-out rows are about a second graph whose names occur nowhere else, so that a model can only copy them from the
input. Therefore documents teach copying: they state each fact twice, in prose and as lines or JSON.
"""

import json
import random
import shutil
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median_low
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from json_rows.row_files import iterate_texts

from demo_world.fact_graph import LANGUAGES, RELATIONS, Fact, FactGraph, build_graph, prose, walk
from demo_world.world_names import split_names

# --- documents --------------------------------------------------------------------------------------------------------

FACT_LINES = {"en": '"{s}" {r} "{o}"', "zh": "（{s}，{r}，{o}）"}
HEADINGS = {"en": ("In short:", "Facts:", "Summary:"), "zh": ("简要：", "事实：", "概要：")}


def fact_lines(facts: list[Fact], language: str) -> str:
    """Return one line for each fact."""
    line = FACT_LINES[language]
    return "\n".join(line.format(s=f.subject, r=RELATIONS[f.relation].label[language], o=f.object) for f in facts)


def record(facts: list[Fact], language: str, draw: random.Random) -> str:
    """Return the facts or their entities as JSON, in an outer object that instruction answers do not have."""
    if draw.random() < 0.5:
        return json.dumps({"entities": entities_of(facts, language)}, ensure_ascii=False)
    return json.dumps({"relations": relations_of(facts, language)}, ensure_ascii=False)


def document(facts: list[Fact], language: str, draw: random.Random) -> str:
    """Return a title, the facts in prose, a heading, the facts as lines or JSON, in 30 % of documents prose again."""
    listed = fact_lines(facts, language) if draw.random() < 0.5 else record(facts, language, draw)
    parts = [facts[0].subject, prose(facts, language, draw), draw.choice(HEADINGS[language]), listed]
    if draw.random() < 0.3:
        parts.append(prose(facts, language, draw))
    return "\n".join(parts)


def documents(graph: FactGraph, count: int, draw: random.Random) -> Iterator[str]:
    """Yield `count` short documents, each about one to three facts."""
    for _ in range(count):
        yield document(walk(graph, draw.choice((1, 2, 2, 3)), draw), graph.language, draw)


def real_documents(data_path: str, text_key: str, budget: int) -> Iterator[str]:
    """Yield about `budget` characters of texts from data_path, or else from the sources of the Python library."""
    if data_path:
        yield from limit_characters(budget, iterate_texts(data_path, text_key))
        return
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    yield from limit_characters(budget, (file.read_text(encoding="utf-8", errors="ignore") for file in files))


def limit_characters(budget: int, texts: Iterator[str]) -> Iterator[str]:
    """Yield texts, each truncated to 4,000 characters, until they have `budget` characters in total."""
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
    """Return distinct (type name, name) pairs in the order of their first mention."""
    found: dict[tuple[str, str], None] = {}
    for fact in facts:
        relation = RELATIONS[fact.relation]
        for kind, name in ((relation.subject, fact.subject), (relation.object, fact.object)):
            found.setdefault((TYPE_NAMES[language][kind], name))
    return list(found)


def entities_of(facts: list[Fact], language: str) -> dict[str, list[str]]:
    """Return type name -> names in the order of their first mention."""
    found: dict[str, list[str]] = {}
    for kind, name in mentions(facts, language):
        found.setdefault(kind, []).append(name)
    return found


def relations_of(facts: list[Fact], language: str) -> dict[str, list[dict[str, str]]]:
    """Return relation label -> {"subject", "object"} objects."""
    found: dict[str, list[dict[str, str]]] = {}
    for fact in facts:
        pair = {"subject": fact.subject, "object": fact.object}
        found.setdefault(RELATIONS[fact.relation].label[language], []).append(pair)
    return found


def annotation(facts: list[Fact], language: str, text: str) -> dict[str, Any]:
    """Return the annotation of `text`, with the keys of CrossNER and a list of relations."""
    return {
        "sentence": text,
        "entity_list": [{"name": name, "type": kind} for kind, name in mentions(facts, language)],
        "relation_list": [
            {"subject": fact.subject, "relation": RELATIONS[fact.relation].label[language], "object": fact.object}
            for fact in facts
        ],
    }


def type_lists() -> dict[str, dict[str, list[str]]]:
    """Return all types of annotations: {"entity": {language: names}, "relation": {language: names}}."""
    return {
        "entity": {language: list(TYPE_NAMES[language].values()) for language in LANGUAGES},
        "relation": {language: [known.label[language] for known in RELATIONS.values()] for language in LANGUAGES},
    }


def rendered(rows: list[dict[str, str]], template_path: str) -> Iterator[str]:
    """Yield rows rendered with a template, without BOS and EOS."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers renders
    template = environment.from_string(Path(template_path).read_text(encoding="utf-8"))
    for row in rows:
        question = {"role": "user", "content": row["instruction"], "input": row["input"]}
        answer = {"role": "assistant", "content": row["output"]}
        yield template.render(messages=[question, answer], bos_token="", eos_token="")


def instruction_rows(
    graph: FactGraph, count: int, draw: random.Random
) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Yield (instruction row, annotation of its input); each input is a text about one or two facts.

    Rows are {"instruction", "input", "output"}; the output is the entities or relations as JSON.
    """
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
    """Return the content of extraction.json: instructions by task, and the median length of inputs in characters."""
    lengths: dict[str, list[int]] = {}
    for row in rows:
        lengths.setdefault(row["instruction"], []).append(len(row["input"]))
    tasks: dict[str, Any] = {}
    for task, wordings in WORDING.items():
        for language, instruction in wordings.items():
            length = {"text_characters": median_low(lengths[instruction])} if instruction in lengths else {}
            tasks.setdefault(task, {})[language] = {"instruction": instruction} | length
    return {"tasks": tasks}


# --- files ------------------------------------------------------------------------------------------------------------


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object per line; return their number."""
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
    """Write the files to the new folder output_dir; rows and heldout_rows count both languages together."""
    if Path(output_dir).exists():
        raise ValueError(f"{output_dir} exists already; name a new folder or remove it")
    for option, path in (("data_path", data_path), ("template_path", template_path)):
        if path and not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist; --{option} takes an existing file")
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
