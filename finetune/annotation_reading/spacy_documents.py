"""Read spaCy's DocBin files (spacy_files/docbin_reader.py); each document is one sentence.

Entities are doc.ents and the spans of all groups in doc.spans, without repetitions. A document is not annotated with
entities if ENT_IOB is 0 for all its tokens (as after nlp.make_doc) and it has no span group. Offsets are computed from
the tokens, in characters. If the spaces of a document are not known (DocBins converted from columns), its tokens are
joined like those of CoNLL columns.
"""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from spacy_files.docbin_reader import SpacyDocument, read_docbin
from text_language.language_detection import language_of

from annotation_reading.annotated_sentences import AnnotatedSentence, Entity, Mention, Span
from annotation_reading.column_files import join_tokens
from annotation_reading.tag_schemes import OUTSIDE, Tag, entity_spans


def read_spacy(path: Path, language: str) -> Iterator[AnnotatedSentence]:
    """Yield the documents of a DocBin file.

    language: "en" or "zh", or "auto": detected for each document. Raises FileNotFoundError, or ValueError if the file
    is damaged or too large, or has no documents.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file; --format spacy takes a .spacy file")
    is_empty = True
    for number, document in enumerate(read_docbin(path), 1):
        is_empty = False
        yield annotated_document(document, language, f"{path}, document {number}")
    if is_empty:
        raise ValueError(f"{path} holds no documents; give another DocBin")


def annotated_document(document: SpacyDocument, language: str, location: str) -> AnnotatedSentence:
    """Return a document as a sentence. A span group's span outside the document becomes a problem."""
    if language == "auto":
        language = language_of(" ".join(document.tokens))
    text, offsets = joined_document(document, language)
    found: list[tuple[str, int, int]] = []  # (type, first token, end token)
    problems = []
    if document.tags is not None:
        tags = [Tag(letter, label) if letter in "BI" and label else OUTSIDE for letter, label in document.tags]
        found += [(span.label, span.first, span.last + 1) for span in entity_spans(tags)]
    for label, first, end in document.groups or ():
        if 0 <= first < end <= len(offsets):
            found.append((label, first, end))
        else:
            fact = f"has the tokens [{first}, {end}], but the document has {len(offsets)} tokens"
            problems.append(f"{location} span {label!r} {fact}")
    entities = []
    for label, first, end in dict.fromkeys(found):
        start, stop = offsets[first][0], offsets[end - 1][1]
        entities.append(Entity(label, Mention(text[start:stop], ((start, stop),))))
    is_annotated = document.tags is not None or document.groups is not None
    return AnnotatedSentence(
        text, language, location, tuple(entities) if is_annotated else None, problems=tuple(problems)
    )


def joined_document(document: SpacyDocument, language: str) -> tuple[str, list[Span]]:
    """Return the text of a document and the span of each token."""
    if document.spaces is None:
        return join_tokens(document.tokens, language)
    parts = [token + " " * space for token, space in zip(document.tokens, document.spaces, strict=True)]
    starts = accumulate(map(len, parts), initial=0)
    return "".join(parts), [(start, start + len(token)) for start, token in zip(starts, document.tokens, strict=False)]
