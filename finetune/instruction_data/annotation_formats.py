"""Read a file of annotated sentences, in a format of annotation_reading/annotation_files.py, for one task."""

from pathlib import Path

from annotation_reading.annotated_sentences import AnnotatedSentence
from annotation_reading.annotation_files import inconsistent_tags, read_annotation_files, recognise_format

from instruction_data.annotations import AnnotatedItem, Annotation, read_annotations


def read_annotation_file(
    path: str, task: str, language: str = "auto", format: str = "auto"
) -> tuple[list[Annotation], int]:
    """Return the annotated sentences of a file with their items for `task`, and the number of inconsistent tags.

    language: language of the sentences; "auto" detects it for each sentence. Raises FileNotFoundError, or ValueError
    with file and line.
    """
    format = recognise_format(path) if format == "auto" else format
    if format == "json":
        return read_annotations(path, task, language), 0
    if format == "conll" and task != "ner":
        raise ValueError(f"{path} has CoNLL columns, which annotate entities only; give --task ner, or a CoNLL04 file")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file; --format {format} takes a text file")
    sentences = read_annotation_files(path, format, language)
    annotations = [Annotation(one.text, one.language, items_of(one, task)) for one in sentences]
    return annotations, inconsistent_tags(path, format)


def items_of(sentence: AnnotatedSentence, task: str) -> list[AnnotatedItem]:
    """Return the entities or the triples of a sentence."""
    if task == "ner":
        return [AnnotatedItem(entity.type, (entity.mention.text,)) for entity in sentence.entities or ()]
    return [AnnotatedItem(one.label, (one.subject.text, one.object.text)) for one in sentence.relations or ()]
