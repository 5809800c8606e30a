"""Convert annotated sentences to extraction examples: instruction, sentence, and the correct answer as JSON."""

import json
from collections import Counter
from typing import Any

from tqdm import tqdm

from instruction_data.annotations import TASKS, AnnotatedItem, Annotation
from instruction_data.extraction_wording import ExtractionQuestion


def correct_answer(items: list[AnnotatedItem], task: str, question: ExtractionQuestion) -> dict[str, list[Any]]:
    """Return type -> names (ner) or relation -> {"subject", "object"} objects (re), with the items in their order.

    If the wording names the types ({schema}), all types are keys, in the order of the question; otherwise only the
    types of the items are.
    """
    answer: dict[str, list[Any]] = {name: [] for name in question.types} if "{schema}" in question.wording else {}
    for item in items:
        value = item.names[0] if task == "ner" else dict(zip(TASKS[task].names, item.names, strict=True))
        answer.setdefault(item.label, []).append(value)
    return answer


def build_examples(
    annotations: list[Annotation], task: str, questions: dict[str, ExtractionQuestion]
) -> tuple[list[dict[str, str]], str]:
    """Return an example for each annotated sentence, in order, and the counts of examples and items as text.

    Raises ValueError if there are items, but none of a requested type.
    """
    examples, empty, kept, not_in_sentence, repeated = [], 0, 0, 0, 0
    other_types: Counter[str] = Counter()
    for sentence, language, items in tqdm(annotations, desc="building", unit="example", delay=2, disable=None):
        question = questions[language]
        requested = [item for item in items if item.label in question.types]
        distinct = list(dict.fromkeys(requested))
        output = json.dumps(correct_answer(distinct, task, question), ensure_ascii=False)
        examples.append({"instruction": question.instruction, "input": sentence, "output": output})
        empty += not distinct
        kept += len(distinct)
        repeated += len(requested) - len(distinct)
        not_in_sentence += sum(any(name not in sentence for name in item.names) for item in distinct)
        other_types.update(item.label for item in items if item.label not in question.types)
    if other_types and not kept:
        names = sorted({name for question in questions.values() for name in question.types})
        raise ValueError(
            f"no item has a requested type ({', '.join(names[:3])}, …); the annotated types with their counts are "
            f"{most_common(other_types)}; give the --types of these annotations, in their language"
        )
    others = f" ({most_common(other_types)})" if other_types else ""
    return examples, (
        f"examples: {most_common(Counter(annotation.language for annotation in annotations))}, {empty} of them without "
        f"any item\nitems: {kept} kept, {not_in_sentence} of them with a name that is not in the sentence\n"
        f"dropped: {other_types.total()} of a type that is not in the list{others}, {repeated} repeated in one sentence"
    )


def extraction_request(
    annotation: Annotation, task: str, question: ExtractionQuestion, example: dict[str, str]
) -> dict[str, Any]:
    """Return an example as a request body of the server's /extract, with the correct answer under "output"."""
    return {
        "task": task,
        "schema": question.types,
        "text": annotation.sentence,
        "language": annotation.language,
        "output": example["output"],
    }


def most_common(counts: Counter[str], shown: int = 4) -> str:
    """Return the largest counts as text: "person 12, place 3, …"."""
    text = ", ".join(f"{name} {count}" for name, count in counts.most_common(shown))
    return text + (", …" if len(counts) > shown else "")
