"""Read brat's standoff annotations: pairs of a text (.txt) and its annotations (.ann), one pair or a folder of them.

    T1    Person 0 3;8 11    Ann Lee       text-bound annotation: type, fragments [start, end), text
    R1    Born_in Arg1:T1 Arg2:T2          relation: subject and object
    E1    Birth:T3 Person:T1 Place2:T4     event: type and trigger, then roles and arguments

Source: https://brat.nlplab.org/standoff.html (brat 1.3). Offsets are in characters (Unicode code points) of the
document. A text-bound annotation is an entity unless it is the trigger of an event. An argument that is an event is
read as this event's trigger. brat numbers repeated roles: Place2 is the role Place if the event also has a Place.
Attributes (A, M), normalisations (N), notes (#) and equivalences (*) are not read.

Each line of a document that is not blank becomes a sentence. An annotation that crosses a line end is a problem.
"""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from text_language.language_detection import language_of

from annotation_reading.annotated_sentences import AnnotatedSentence, Entity, Event, Mention, Relation, Span
from annotation_reading.column_files import numbered_lines

TEXT_BOUND = re.compile(r"(T\S*)\t(\S+) (\d{1,15} \d{1,15}(?:;\d{1,15} \d{1,15})*)\t(.*)")
RELATION = re.compile(r"(R\S*)\t(\S+) [^\s:]+:(\S+) [^\s:]+:(\S+)\s*")
EVENT = re.compile(r"(E\S*)\t([^\s:]+):(\S+)((?: [^\s:]+:\S+)*)\s*")
NUMBERED_ROLE = re.compile(r"(.*[^0-9])[0-9]+")
IGNORED = "AMN#*"


class TextBound(NamedTuple):
    """A text-bound annotation; line: its line in the .ann file."""

    type: str
    spans: tuple[Span, ...]  # in characters of the document
    text: str
    line: int


class Link(NamedTuple):
    """A relation or an event. ends: the ids of subject and object, or of the trigger."""

    type: str
    ends: tuple[str, ...]
    arguments: tuple[tuple[str, str], ...]  # (role, id) of an event
    line: int


class StandoffFile(NamedTuple):
    """The annotations of an .ann file by their ids."""

    path: Path
    text_bounds: dict[str, TextBound]
    relations: dict[str, Link]
    events: dict[str, Link]


def is_brat(path: Path) -> bool:
    """Return whether a path is an .ann file, or a folder with an .ann file in it or below."""
    return path.suffix == ".ann" if not path.is_dir() else next(path.rglob("*.ann"), None) is not None


def read_brat(path: Path, language: str) -> Iterator[AnnotatedSentence]:
    """Yield the sentences of an .ann file, of the .ann file beside a .txt file, or of all .ann files below a folder.

    language: "en" or "zh", or "auto": detected for each sentence. Raises FileNotFoundError, or ValueError with file and
    line.
    """
    files = sorted(path.rglob("*.ann")) if path.is_dir() else [path.with_suffix(".ann")]
    if not files or not files[0].is_file():
        raise FileNotFoundError(
            f"{path} has no .ann file; --format brat takes an .ann file beside its .txt, or a folder"
        )
    is_empty = True
    for file in files:
        for sentence in DocumentReader(read_standoff(file)).sentences(language):
            is_empty = False
            yield sentence
    if is_empty:
        raise ValueError(f"{path} holds no text; give .txt files beside the .ann files")


def read_standoff(path: Path) -> StandoffFile:
    """Return the annotations of an .ann file; raises ValueError with file and line."""
    found = StandoffFile(path, {}, {}, {})
    for number, line in numbered_lines(path):
        if not line.strip() or line[0] in IGNORED:
            continue
        identifier = line.split("\t", 1)[0]
        if identifier in found.text_bounds or identifier in found.relations or identifier in found.events:
            raise ValueError(f"{path}:{number} has the id {identifier[:40]!r} of an earlier line; give it another id")
        if match := TEXT_BOUND.fullmatch(line):
            pairs = (fragment.split(" ") for fragment in match[3].split(";"))
            spans = tuple((int(start), int(end)) for start, end in pairs)
            found.text_bounds[identifier] = TextBound(match[2], spans, match[4], number)
        elif match := RELATION.fullmatch(line):
            found.relations[identifier] = Link(match[2], (match[3], match[4]), (), number)
        elif match := EVENT.fullmatch(line):
            pairs = (pair.split(":", 1) for pair in match[4].split())
            arguments = tuple((role, end) for role, end in pairs)
            found.events[identifier] = Link(match[2], (match[3],), arguments, number)
        else:
            raise ValueError(
                f"{path}:{number} is not a brat annotation ({line[:40]!r}); write T, R or E lines such as 'T1', tab, "
                "'Person 0 7', tab, 'Ann Lee'"
            )
    return found


def read_document(path: Path) -> str:
    """Return the text of a .txt file with its line ends, which count in offsets.

    Raises FileNotFoundError, or ValueError with file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; put the text beside the .ann file of the same name")
    data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line} is not UTF-8 (byte 0x{data[error.start]:02x}); convert it to UTF-8") from None


class DocumentReader:
    """Divides the annotations of a document among its lines."""

    def __init__(self, standoff: StandoffFile) -> None:
        self.standoff, self.path = standoff, standoff.path.with_suffix(".txt")
        document = read_document(self.path)
        self.length = len(document)
        self.lines = [line.rstrip("\r") for line in document.split("\n")]
        self.starts = list(accumulate((len(line) + 1 for line in document.split("\n")[:-1]), initial=0))
        if document.startswith("\ufeff"):  # brat counts a byte order mark as a character
            self.lines[0], self.starts[0] = self.lines[0][1:], 1
        self.entities: defaultdict[int, list[Entity]] = defaultdict(list)  # by the index of the line
        self.relations: defaultdict[int, list[Relation]] = defaultdict(list)
        self.events: defaultdict[int, list[Event]] = defaultdict(list)
        self.problems: defaultdict[int, list[str]] = defaultdict(list)

    def sentences(self, language: str) -> Iterator[AnnotatedSentence]:
        """Yield the lines that are not blank; raises ValueError if annotations have no text."""
        self.divide()
        texts = [index for index, line in enumerate(self.lines) if line.strip()]
        if not texts and (self.problems or self.entities):
            raise ValueError(f"{self.standoff.path} has annotations, but {self.path} has no text; give its text")
        blank = [one for index in sorted(set(self.problems) - set(texts)) for one in self.problems[index]]
        for index in texts:
            text = self.lines[index]
            yield AnnotatedSentence(
                text,
                language_of(text) if language == "auto" else language,
                f"{self.path}:{index + 1}",
                tuple(self.entities[index]),
                tuple(self.relations[index]),
                tuple(self.events[index]),
                tuple(self.problems[index] + (blank if index == texts[0] else [])),
            )

    def divide(self) -> None:
        """Add each annotation, or the problem with it, to its line."""
        text_bounds, _, events = self.standoff[1:]
        triggers = {event.ends[0] for event in events.values()}
        for identifier, item in text_bounds.items():
            if identifier not in triggers:
                line, mention, error = self.place(identifier)
                if not self.problem(line, item.line, f"entity {item.text[:60]!r}", error):
                    self.entities[line].append(Entity(item.type, mention))
        for relation in self.standoff.relations.values():
            (line, subject, first_error), (other, target, error) = map(self.place, relation.ends)
            error = first_error or error or ("connects two lines" if line != other else "")
            if not self.problem(line, relation.line, f"relation {relation.type!r}", error):
                types = (text_bounds[self.text_bound_of(end)].type for end in relation.ends)
                self.relations[line].append(Relation(relation.type, subject, target, *types))
        for event in events.values():
            self.add_event(event)

    def add_event(self, event: Link) -> None:
        """Add an event to the line of its trigger; arguments in other lines become problems."""
        line, trigger, error = self.place(event.ends[0])
        if self.problem(line, event.line, f"event {event.type!r}", error):
            return
        roles, arguments = {role for role, _ in event.arguments}, []
        for role, end in event.arguments:
            other, mention, error = self.place(end)
            error = error or ("is not in the line of the trigger" if line != other else "")
            if not self.problem(line, event.line, f"event {event.type!r}: argument {role!r}", error):
                match = NUMBERED_ROLE.fullmatch(role)
                arguments.append((match[1] if match and match[1] in roles else role, mention))
        self.events[line].append(Event(event.type, trigger, tuple(arguments)))

    def problem(self, line: int, ann_line: int, item: str, error: str) -> bool:
        """Add an error of an item, if there is one, to the problems of a line, and return whether there is one."""
        if error:
            self.problems[line].append(f"{self.standoff.path}:{ann_line} {item} {error}")
        return bool(error)

    def text_bound_of(self, identifier: str) -> str:
        """Return the id of an event's trigger, or another id unchanged."""
        event = self.standoff.events.get(identifier)
        return event.ends[0] if event else identifier

    def place(self, identifier: str) -> tuple[int, Mention, str]:
        """Return the line of a text-bound annotation or an event, its mention in this line, and an error or ""."""
        item = self.standoff.text_bounds.get(self.text_bound_of(identifier))
        if item is None:
            return 0, Mention(""), f"refers to {identifier[:40]!r}, which is not in the file"
        line = max(bisect_right(self.starts, item.spans[0][0]) - 1, 0)
        begin, text = self.starts[line], self.lines[line]
        mention = Mention(item.text, tuple((start - begin, end - begin) for start, end in item.spans))
        ends = [end for _, end in item.spans]
        if not text.strip():
            return line, mention, "is in a blank line"
        # An end beyond the document is found by check_sentence.
        crosses = any(begin + len(text) < end <= self.length for end in ends)
        return line, mention, "crosses a line end, but each line is a sentence" if crosses else ""
