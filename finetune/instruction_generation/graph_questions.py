"""Generate questions from the paths of a knowledge graph, which contains their answers.

A path is a head entity and one to `hops` relations, for example Danny DeVito | born in | contained by. Its answers are
all entities at its end. The model words the question, and an answer from the path's triples; both are checked against
the names in the graph.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from text_language.language_detection import language_of

from instruction_generation.generation_prompts import GRAPH_ANSWER, GRAPH_QUESTION, NOTHING_HIDDEN, fill
from instruction_generation.generation_run import GeneratedRows, GenerationRun, PlannedRequest, without_heading

MAX_ANSWERS = 5  # of a question; paths with more are not used
MAX_FACTS = 30  # triples of a path
DRAWS_PER_PATH = 50  # attempts to draw a path that is new and short enough
HEADER = ("head", "head id", "head_id")


class GraphPath(NamedTuple):
    """A question's path in the graph, with the names of entities."""

    head: str
    relations: tuple[str, ...]
    facts: tuple[tuple[str, str, str], ...]  # all triples of the path: subject, relation, object
    answers: tuple[str, ...]  # the names at the end of the path

    @property
    def hidden(self) -> list[str]:
        """Names between head and answers."""
        names = dict.fromkeys(name for subject, _, item in self.facts for name in (subject, item))
        return [name for name in names if name != self.head and name not in self.answers]


class KnowledgeGraph:
    """Triples by head entity.

    Attributes:
        names: entity id -> name. In a file without ids, the name is the id.
        outgoing: entity id -> relation -> ids of its objects, in the order of the file.
        heads: the head of each triple, for drawing.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.outgoing: dict[str, dict[str, list[str]]] = defaultdict(dict)
        self.heads: list[str] = []

    def add(self, head: str, relation: str, tail: str) -> None:
        """Add a triple of ids; a repeated triple is ignored."""
        tails = self.outgoing[head].setdefault(relation, [])
        if tail not in tails[-MAX_FACTS - 1 :]:  # bounded; longer lists are not used for questions
            tails.append(tail)
            self.heads.append(head)


def read_graph(path: str | Path) -> KnowledgeGraph:
    """Return the triples of a TSV file: head id, head, relation, tail id, tail; or head, relation, tail.

    A first line with the column names is skipped. Raises FileNotFoundError, or ValueError with file and line.
    """
    graph = KnowledgeGraph()
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; --kg takes a TSV file of triples")
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                columns = [column.strip() for column in line.decode("utf-8-sig").rstrip("\r\n").split("\t")]
            except UnicodeDecodeError:
                raise ValueError(f"{path}:{number} is not UTF-8; convert the file") from None
            if columns == [""] or (number == 1 and columns[0].lower() in HEADER):
                continue
            if len(columns) not in (3, 5) or not all(columns):
                form = "head id, head, relation, tail id, tail, or head, relation, tail, separated by tabs"
                raise ValueError(f"{path}:{number} is not a triple; a line has {form}")
            if len(columns) == 3:
                columns = [columns[0], columns[0], columns[1], columns[2], columns[2]]
            head, name, relation, tail, tail_name = columns
            graph.names.setdefault(head, name)
            graph.names.setdefault(tail, tail_name)
            graph.add(head, relation, tail)
    if not graph.heads:
        raise ValueError(f"{path} has no triples; give another --kg")
    return graph


def draw_paths(graph: KnowledgeGraph, run: GenerationRun, count: int, hops: int) -> list[GraphPath]:
    """Return up to `count` different paths of 1 to `hops` relations; fewer if the graph has too few usable ones."""
    paths: dict[tuple[str, tuple[str, ...]], GraphPath] = {}
    draw = run.random("paths")
    for _ in range(count * DRAWS_PER_PATH):
        if len(paths) == count:
            break
        head = at = draw.choice(graph.heads)
        relations: list[str] = []
        for _ in range(draw.randint(1, hops)):
            if not graph.outgoing.get(at):
                break
            relations.append(draw.choice(list(graph.outgoing[at])))
            at = draw.choice(graph.outgoing[at][relations[-1]])
        key = (head, tuple(relations))
        if key not in paths and (found := follow_path(graph, head, key[1])):
            paths[key] = found
    return list(paths.values())


def follow_path(graph: KnowledgeGraph, head: str, relations: tuple[str, ...]) -> GraphPath | None:
    """Return the path with all its triples and answers.

    None if it has more than MAX_ANSWERS answers or MAX_FACTS triples, or if an answer is also the name of the head
    or of an entity on the path.
    """
    current, facts = [head], list[tuple[str, str, str]]()
    for relation in relations:
        following = dict[str, None]()
        for entity in current:
            for tail in graph.outgoing.get(entity, {}).get(relation, ()):
                facts.append((graph.names[entity], relation, graph.names[tail]))
                following[tail] = None
                if len(facts) > MAX_FACTS:
                    return None
        current = list(following)
    answers = tuple(dict.fromkeys(graph.names[entity] for entity in current))
    inner = {subject for subject, _, _ in facts}
    if not answers or len(answers) > MAX_ANSWERS or inner & set(answers):
        return None
    return GraphPath(graph.names[head], relations, tuple(dict.fromkeys(facts)), answers)


def graph_questions(run: GenerationRun, graph: KnowledgeGraph, count: int, hops: int) -> GeneratedRows:
    """Return up to `count` rows, whose questions and answers agree with the graph."""
    rejected, rows, paths = Counter[str](), [], draw_paths(graph, run, count, hops)
    if len(paths) < count:
        rejected["no usable path"] = count - len(paths)
    prompts = [PlannedRequest(question_prompt(run.language, path), ("question", at)) for at, path in enumerate(paths)]
    asked: list[tuple[GraphPath, str]] = []
    for path, reply in zip(paths, run.ask(prompts, "questions"), strict=True):
        question = without_heading(reply.text)
        if fault := question_fault(question, path, run.language) or "question cut" * (reply.finish_reason == "length"):
            rejected[fault] += 1
        else:
            asked.append((path, question))
    planned = [
        PlannedRequest(answer_prompt(run.language, path, text), ("answer", at)) for at, (path, text) in enumerate(asked)
    ]
    for (path, question), reply in zip(asked, run.ask(planned, "answers"), strict=True):
        answer = reply.text.strip()
        if reply.finish_reason == "length" or not all(name.lower() in answer.lower() for name in path.answers):
            rejected["answer without all names of the graph"] += 1
            continue
        rows.append(
            {"instruction": question, "input": "", "output": answer, "method": "kg", "answers": list(path.answers),
             "path": [path.head, *path.relations], "facts": [list(fact) for fact in path.facts]}
        )  # fmt: skip
    return GeneratedRows(rows, rejected)


def fact_lines(path: GraphPath) -> str:
    """Return the triples of a path, one on a line."""
    return "\n".join(" | ".join(fact) for fact in path.facts)


def joined(names: Sequence[str], language: str) -> str:
    """Return names as a list in a sentence."""
    return "、".join(names) if language == "zh" else ", ".join(names)


def question_prompt(language: str, path: GraphPath) -> str:
    """Return the prompt for a question."""
    return fill(
        GRAPH_QUESTION[language], answer=joined(path.answers, language), head=path.head, facts=fact_lines(path),
        hidden=joined(path.hidden, language) or NOTHING_HIDDEN[language],
    )  # fmt: skip


def answer_prompt(language: str, path: GraphPath, question: str) -> str:
    """Return the prompt for an answer."""
    names = joined([f'"{name}"' if language == "en" else f"“{name}”" for name in path.answers], language)
    return fill(GRAPH_ANSWER[language], answer=names, facts=fact_lines(path), question=question)


def question_fault(question: str, path: GraphPath, language: str) -> str:
    """Return why a question does not fit its path, or ""."""
    lower = question.lower()
    if not question or "\n" in question:
        return "not a single question"
    if path.head.lower() not in lower:
        return "question does not name the head"
    without_head = lower.replace(path.head.lower(), " ")
    if any(name.lower() in without_head for name in path.answers):
        return "question contains an answer"
    if any(name.lower() in without_head for name in path.hidden):
        return "question names an entity between head and answer"
    without_names = question.replace(path.head, "")
    return "question in another language" if language_of(without_names) != language else ""
