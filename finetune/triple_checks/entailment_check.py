"""Reject triples that their sentence does not entail, with a model of natural language inference.

The model is a sequence classification checkpoint with a label "entailment" (id2label in config.json), such as models
tuned on MNLI or XNLI. The premise is the sentence, and the hypothesis is the triple as a sentence.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from graph_linking.sentence_annotations import Row
from model_folders.own_code import from_folder
from text_language.language_detection import language_of

ROWS = 256  # rows that are checked together
PAIRS = 32  # pairs of sentences in a forward pass
LONGEST_PAIR = 512  # tokens
_LIKE_A_VERB = re.compile(r"\b(in|for|of|at|by|to|from|with|on|as|into)$|^\w+(s|ed|wrote|born)$|^wrote$", re.IGNORECASE)


def relation_words(relation: str) -> str:
    """Return the name of a relation as words: /people/person/place_of_birth is "place of birth"."""
    return re.split(r"[/#]", relation.rstrip("/#"))[-1].replace("_", " ").strip() or relation


def triple_as_sentence(relation: Mapping[str, Any], language: str, templates: Mapping[str, str]) -> str:
    """Return the sentence that states a triple.

    templates: relation -> sentence with {subject} and {object}. Other relations become "The capital of X is Y.", or
    "X works for Y." if the name ends like a verb or in a preposition; in Chinese, "X的首府是Y。".
    """
    words = relation_words(relation["relation"])
    template = templates.get(relation["relation"])
    if template is None and language == "zh":
        template = "{subject}的" + words + "是{object}。"
    elif template is None and _LIKE_A_VERB.search(words):
        be = "was " if re.match(r"(born|educated|founded|located|based|written)\b", words) else ""
        template = "{subject} " + be + words + " {object}."
    elif template is None:
        template = "The " + words + " of {subject} is {object}."
    return re.sub(r"\{(subject|object)\}", lambda match: str(relation[match[1]]), template)


class EntailmentCheck:
    """Removes relations from rows; the model is loaded at the first row.

    Raises ValueError if the folder has no model with a label "entailment".
    """

    def __init__(self, folder: str, templates: Mapping[str, str]) -> None:
        self.folder, self.templates = folder, templates
        self.model: Any = None

    def __call__(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Yield the rows with the entailed relations only."""
        batch = list[Row]()
        for row in rows:
            batch.append(row)
            if len(batch) == ROWS:
                yield from self._checked(batch)
                batch = []
        yield from self._checked(batch)

    def load(self) -> None:
        """Load model and tokenizer, on the first GPU if there is one."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer = from_folder(AutoTokenizer, self.folder, False)
        model = from_folder(AutoModelForSequenceClassification, self.folder, False)
        labels = {str(label).lower(): int(number) for number, label in model.config.id2label.items()}
        if "entailment" not in labels:
            names = ", ".join(labels)
            raise ValueError(f"{self.folder} has no label entailment in id2label (labels: {names}); give an NLI model")
        self.entailment = labels["entailment"]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.eval().to(self.device)

    def _checked(self, rows: list[Row]) -> Iterator[Row]:
        pairs = []
        for row in rows:
            language = language_of(row["sentence"])
            pairs += [
                (row["sentence"], triple_as_sentence(one, language, self.templates)) for one in row["relation_list"]
            ]
        entailed = iter(self.entailed(pairs))
        for row in rows:
            yield row | {"relation_list": [one for one in row["relation_list"] if next(entailed)]}

    def entailed(self, pairs: list[tuple[str, str]]) -> list[bool]:
        """Return for each (premise, hypothesis) whether "entailment" is the most probable label."""
        import torch

        if not pairs:
            return []
        if self.model is None:
            self.load()
        found = [False] * len(pairs)
        order = sorted(range(len(pairs)), key=lambda at: len(pairs[at][0]))  # little padding
        longest = min(LONGEST_PAIR, getattr(self.model.config, "max_position_embeddings", LONGEST_PAIR))
        for begin in range(0, len(order), PAIRS):
            chosen = order[begin : begin + PAIRS]
            premises, hypotheses = zip(*(pairs[at] for at in chosen), strict=True)
            batch = self.tokenizer(
                list(premises), list(hypotheses), truncation="only_first", max_length=longest, padding=True,
                return_tensors="pt",
            ).to(self.device)  # fmt: skip
            with torch.inference_mode():
                best = self.model(**batch).logits.argmax(-1).tolist()
            for at, label in zip(chosen, best, strict=True):
                found[at] = label == self.entailment
        return found
