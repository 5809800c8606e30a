"""The checks of the rows of a task, in a picklable form, since tasks may run on other machines."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from graph_linking.graph_files import Schema, read_columns
from graph_linking.sentence_annotations import Row

from triple_checks.entailment_check import EntailmentCheck
from triple_checks.language_model_check import LanguageModelCheck, ModelServer

Check = Callable[[Iterator[Row]], Iterator[Row]]


@dataclass(frozen=True)
class CheckPlan:
    """nli: folder of an NLI model, "": none. server: None: no language model. relations: names in the graph."""

    nli: str
    templates: dict[str, str]
    server: ModelServer | None
    relations: list[str]
    schema: Schema | None

    def __call__(self, folder: Path, task: int) -> list[Check]:
        """Return the checks of a task. folder: intermediate files of the run, which keeps the journals of answers."""
        checks: list[Check] = []
        if self.nli:
            checks.append(EntailmentCheck(self.nli, self.templates))
        if self.server:
            checks.append(LanguageModelCheck(self.server, self.relations, self.schema, folder / f"answers-{task:05}"))
        return checks


def read_templates(path: str) -> dict[str, str]:
    """Return relation -> sentence of a file of --templates; raises FileNotFoundError or ValueError."""
    templates = {}
    for relation, sentence in read_columns(path, (2,), "relation, sentence with {subject} and {object}"):
        if "{subject}" not in sentence or "{object}" not in sentence:
            raise ValueError(f"{path}: the sentence of {relation} lacks {{subject}} or {{object}}; add it")
        templates[relation] = sentence
    return templates


def read_evidence_words(path: str) -> dict[str, list[str]]:
    """Return relation -> words of a file of --evidence_words; raises FileNotFoundError or ValueError."""
    words: dict[str, list[str]] = {}
    for relation, word in read_columns(path, (2,), "relation, word"):
        words.setdefault(relation, []).append(word)
    return words
