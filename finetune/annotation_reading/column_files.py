"""Read sentences from files with one token per line: CoNLL columns, and CoNLL04 with relations.

CoNLL columns (conll_sentences): the first column is the token, the last one its tag; columns are separated by tabs if
the line has a tab, else by spaces. A blank line ends a sentence. Lines with -DOCSTART-, and comments before a sentence
("# …" without a tag at the end), are skipped.

    Ann    B-person
    Lee    I-person
    left   O

CoNLL04 (conll04_sentences): a line "#doc N" begins a document; the other lines have five columns, separated by tabs:
the token's index, the token, its tag, a list of relations and a list of as many token indices. A relation stands at the
last token of its subject and points to the last token of its object; 'N' means no relation.

    #doc 5
    0    Ann    B-Peop    ['N']          [0]
    1    Lee    I-Peop    ['Live_In']    [3]
    2    in     O         ['N']          [2]
    3    Oslo   B-Loc     ['N']          [3]

Tags are in BIO, IOB1, BIOES or BMES (tag_schemes.py).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from json_rows.json_stream import TextWindow, encoding_error
from text_language.language_detection import language_of

from annotation_reading.annotated_sentences import AnnotatedSentence, Entity, Mention, Relation
from annotation_reading.tag_schemes import Tag, TagCounts, entity_spans, parse_tag

DOCUMENT = re.compile(r"#doc\b")
# Python lists as printed. Each alternative begins with a different character, so matching is linear.
NAME_LIST = re.compile(r"""\[\s*(?:'[^'\\]+'|"[^"\\]+")(?:\s*,\s*(?:'[^'\\]+'|"[^"\\]+"))*\s*\]""")
NAME = re.compile(r"""'([^'\\]+)'|"([^"\\]+)\"""")
INDEX_LIST = re.compile(r"\[\s*[0-9]{1,9}(?:\s*,\s*[0-9]{1,9})*\s*\]")
NO_RELATION = "N"
SPACES = re.compile(" +")
LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]{2}")


class TokenRelation(NamedTuple):
    """A relation at the token `subject` that points to the token `target`; line: its line in the file."""

    label: str
    subject: int
    target: int
    line: int


@dataclass
class TaggedSentence:
    """The tokens of a sentence with their tags and relations; line: the line of the first token."""

    line: int = 0
    tokens: list[str] = field(default_factory=list)
    tags: list[Tag] = field(default_factory=list)
    relations: list[TokenRelation] = field(default_factory=list)


def join_tokens(tokens: Sequence[str], language: str) -> tuple[str, list[tuple[int, int]]]:
    """Return the sentence of the tokens, and [start, end) of each token in it, in characters.

    Tokens are joined with a space. In a Chinese sentence (`language` zh), there is a space only between two tokens that
    each have a word of two or more Latin letters: "他在", "New", "York" gives "他在New York", and the single letters of
    files with one character per line are joined into words.
    """
    parts: list[str] = []
    offsets = []
    length, was_word = 0, False
    for number, token in enumerate(tokens):
        is_word = LATIN_WORD.search(token) is not None
        if number and (language != "zh" or (was_word and is_word)):
            parts.append(" ")
            length += 1
        parts.append(token)
        offsets.append((length, length + len(token)))
        length, was_word = length + len(token), is_word
    return "".join(parts), offsets


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of a text file, with the encodings and compressions of row files.

    Raises ValueError with file and line if a line is damaged or not UTF-8.
    """
    with path.open("rb") as file:
        window = TextWindow(file, path)
        while window.read_line():
            if error := encoding_error(window.text):
                raise ValueError(f"{path}:{window.line} {error}")
            yield window.line, window.text.rstrip("\r\n")
            window.advance(len(window.text))


def split_columns(line: str) -> list[str]:
    """Return the columns of a line: separated by tabs if it has one, else by spaces."""
    line = line.strip(" \t\ufeff")
    return [column.strip(" ") for column in line.split("\t")] if "\t" in line else SPACES.split(line)


def is_comment(columns: Sequence[str]) -> bool:
    """Return whether a line is a comment: "#" is its first word, and its last word is not a tag."""
    return columns[0].split(" ")[0] == "#" and parse_tag(columns[-1]) is None


def conll_sentences(path: Path) -> Iterator[TaggedSentence]:
    """Yield the sentences of a file with CoNLL columns; raises ValueError with file and line."""
    sentence = TaggedSentence()
    for number, line in numbered_lines(path):
        columns = split_columns(line)
        is_boundary = columns[0] in ("", "-DOCSTART-")
        if is_boundary and sentence.tokens:
            yield sentence
            sentence = TaggedSentence()
        if is_boundary or (not sentence.tokens and is_comment(columns)):
            continue
        if len(columns) < 2:
            raise ValueError(
                f"{path}:{number} has one column ({columns[0][:40]!r}); write the token first and its tag last, "
                "separated by spaces or a tab"
            )
        sentence.line = sentence.line or number
        sentence.tokens.append(columns[0])
        sentence.tags.append(checked_tag(path, number, columns[-1]))
    if sentence.tokens:
        yield sentence


def checked_tag(path: Path, number: int, text: str) -> Tag:
    """Return the tag of a line; raises ValueError if `text` is not a tag."""
    tag = parse_tag(text)
    if tag is None:
        raise ValueError(
            f"{path}:{number} has the invalid tag {text[:40]!r}; write O, or B-, I-, E-, S- or M- and a type, in the "
            "last column (CoNLL04: the third)"
        )
    return tag


def conll04_sentences(path: Path) -> Iterator[TaggedSentence]:
    """Yield the documents of a CoNLL04 file as sentences; raises ValueError with file and line."""
    sentence = TaggedSentence()
    for number, line in numbered_lines(path):
        columns = split_columns(line)
        if not columns[0] or DOCUMENT.match(columns[0]):
            if sentence.tokens:
                yield sentence
                sentence = TaggedSentence()
            continue
        if len(columns) != 5 or not columns[1]:
            fact = "no token" if len(columns) == 5 else f"{len(columns)} columns, not five"
            raise ValueError(f"{path}:{number} has {fact}; separate index, token, tag, relations and indices by tabs")
        if columns[0] != str(len(sentence.tokens)):
            raise ValueError(
                f"{path}:{number} has the index {columns[0][:20]!r}, but the next token of this document has the "
                f"index {len(sentence.tokens)}; a document begins with a line '#doc N' and the index 0"
            )
        sentence.line = sentence.line or number
        sentence.relations += parse_relations(path, number, len(sentence.tokens), columns[3], columns[4])
        sentence.tokens.append(columns[1])
        sentence.tags.append(checked_tag(path, number, columns[2]))
    if sentence.tokens:
        yield sentence


def parse_relations(path: Path, number: int, subject: int, relations: str, targets: str) -> list[TokenRelation]:
    """Return the relations at the token `subject` from its last two columns; raises ValueError."""
    if not NAME_LIST.fullmatch(relations) or not INDEX_LIST.fullmatch(targets):
        raise ValueError(
            f"{path}:{number} has {relations[:40]!r} and {targets[:40]!r} in its last two columns; write a list of "
            "relations and a list of token indices, such as ['Live_In'] and [3]"
        )
    names = [single or double for single, double in NAME.findall(relations)]
    indices = [int(index) for index in targets.strip("[]").split(",")]
    if len(names) != len(indices):
        raise ValueError(
            f"{path}:{number} has {len(names)} relations and {len(indices)} token indices; write one index for each"
        )
    pairs = zip(names, indices, strict=True)
    return [TokenRelation(name, subject, index, number) for name, index in pairs if name != NO_RELATION]


def read_conll(path: Path, language: str) -> Iterator[AnnotatedSentence]:
    """Yield the sentences of a file with CoNLL columns, and their entities; raises ValueError with file and line.

    language: language of the sentences, which decides how tokens are joined; "auto" detects it for each sentence.
    """
    return annotated(path, conll_sentences(path), language, has_relations=False)


def read_conll04(path: Path, language: str) -> Iterator[AnnotatedSentence]:
    """Yield the documents of a CoNLL04 file with entities and relations; parameters and errors as in `read_conll`."""
    return annotated(path, conll04_sentences(path), language, has_relations=True)


def annotated(
    path: Path, sentences: Iterable[TaggedSentence], language: str, has_relations: bool
) -> Iterator[AnnotatedSentence]:
    """Yield tagged sentences as annotated ones; raises ValueError if there is none."""
    is_empty = True
    for sentence in sentences:
        is_empty = False
        yield annotate(path, sentence, language, has_relations)
    if is_empty:
        raise ValueError(f"{path} holds no sentences; give a file with one token and its tag per line")


def annotate(path: Path, sentence: TaggedSentence, language: str, has_relations: bool) -> AnnotatedSentence:
    """Return a tagged sentence as an annotated one, with the spans of its entities and relations.

    A relation that is not between the last tokens of two entities becomes a problem of the sentence.
    """
    if language == "auto":
        language = language_of(" ".join(sentence.tokens))
    text, offsets = join_tokens(sentence.tokens, language)
    entities: dict[int, Entity] = {}  # by the index of the last token
    for span in entity_spans(sentence.tags):
        start, end = offsets[span.first][0], offsets[span.last][1]
        entities[span.last] = Entity(span.label, Mention(text[start:end], ((start, end),)))
    relations, problems = [], []
    for relation in sentence.relations:
        missing = [index for index in (relation.subject, relation.target) if index not in entities]
        if missing:
            fact = "is not the last token of an entity" if missing[0] < len(offsets) else "is beyond the last token"
            problems.append(
                f"{path}:{relation.line} relation {relation.label!r} has the token index {missing[0]}, which {fact}"
            )
        else:
            subject, target = entities[relation.subject], entities[relation.target]
            relations.append(Relation(relation.label, subject.mention, target.mention, subject.type, target.type))
    return AnnotatedSentence(
        text, language, f"{path}:{sentence.line}", tuple(entities.values()),
        tuple(relations) if has_relations else None, problems=tuple(problems),
    )  # fmt: skip


def count_inconsistent_tags(sentences: Iterable[TaggedSentence]) -> int:
    """Return how many tags of a file are inconsistent with the tags beside them; see `TagCounts`."""
    counts = TagCounts()
    for sentence in sentences:
        counts.add(sentence.tags)
    return counts.inconsistent()
