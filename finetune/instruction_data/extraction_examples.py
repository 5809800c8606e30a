"""Turn annotated sentences into extraction examples: instruction, sentence and the correct answer as JSON."""

import json
from collections import Counter
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any

from tqdm import tqdm

from instruction_data.annotations import TASKS, AnnotatedItem, Annotation
from instruction_data.extraction_wording import ExtractionQuestion


@dataclass
class BuildReport:
    """Counts of examples and items, printed at the end."""

    examples: Counter[str] = field(default_factory=Counter)  # by language
    without_items: int = 0
    kept: int = 0
    not_in_sentence: int = 0  # kept, since only an annotator can correct them
    other_types: Counter[str] = field(default_factory=Counter)  # dropped, by type
    repeated: int = 0  # dropped: equal items of one sentence


def correct_answer(
    annotation: Annotation, task: str, question: ExtractionQuestion, report: BuildReport
) -> dict[str, list[Any]]:
    """Return type -> names, or {"subject", "object"} objects, in the annotation's order, without duplicates."""
    keys = TASKS[task].names
    answer: dict[str, list[Any]] = {name: [] for name in question.types} if question.absent == "empty list" else {}
    seen: set[AnnotatedItem] = set()
    for item in annotation.items:
        if item.label not in question.types:
            report.other_types[item.label] += 1
        elif item in seen:
            report.repeated += 1
        else:
            seen.add(item)
            report.not_in_sentence += any(name not in annotation.sentence for name in item.names)
            value = item.names[0] if len(keys) == 1 else dict(zip(keys, item.names, strict=True))
            answer.setdefault(item.label, []).append(value)
    report.kept += len(seen)
    report.without_items += not seen
    return answer


def build_examples(
    annotations: list[Annotation], task: str, questions: dict[str, ExtractionQuestion]
) -> tuple[list[dict[str, str]], BuildReport]:
    """Return an example for each annotated sentence, in order, and the counts of items.

    Raises ValueError if there are items, but none of a requested type.
    """
    report = BuildReport()
    examples = []
    for annotation in tqdm(annotations, desc="building", unit="example", delay=2, disable=None):
        question = questions[annotation.language]
        output = json.dumps(correct_answer(annotation, task, question, report), ensure_ascii=False)
        examples.append({"instruction": question.instruction, "input": annotation.sentence, "output": output})
        report.examples[annotation.language] += 1
    if report.other_types and not report.kept:
        requested = sorted({name for question in questions.values() for name in question.types})
        raise ValueError(
            f"no item has a requested type ({', '.join(requested[:3])}, …); the annotated types are "
            f"{most_common(report.other_types)}; give the --types of these annotations, in their language"
        )
    return examples, report


def most_common(counts: Counter[str], shown: int = 4) -> str:
    """Return the largest counts as text: "person 12, place 3, …"."""
    text = ", ".join(f"{name} {count}" for name, count in counts.most_common(shown))
    return text + (", …" if len(counts) > shown else "")


def report_lines(report: BuildReport) -> str:
    """Return the report as lines for a terminal."""
    total = report.examples.total()
    shares = ", ".join(f"{count / total:.1%} {language}" for language, count in report.examples.most_common())
    others = f" ({most_common(report.other_types)})" if report.other_types else ""
    return (
        f"examples: {total} ({shares}), {report.without_items} of them without any item\n"
        f"items: {report.kept} kept, {report.not_in_sentence} of them not in the sentence as written\n"
        f"dropped: {report.other_types.total()} of a type that is not in the list{others}, "
        f"{report.repeated} repeated in one sentence"
    )


def usual_lengths(annotations: list[Annotation]) -> dict[str, int]:
    """Return language -> median number of characters of a sentence."""
    lengths: dict[str, list[int]] = {}
    for annotation in annotations:
        lengths.setdefault(annotation.language, []).append(len(annotation.sentence))
    return {language: median_low(found) for language, found in lengths.items()}
