"""Read BIO, IOB1, BIOES and BMES tags: the spans of entities, and the number of inconsistent tags of a file.

A tag is "O", or a prefix, "-" and a type. An entity begins and ends where the scorer of the CoNLL shared tasks
(conlleval) begins and ends it, even if the tags are inconsistent.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

TAG = re.compile(r"O|([BIESM])-(.*\S)")


class Tag(NamedTuple):
    """The tag of a token. prefix: O, B, I, E or S (M of BMES is read as I); label: the type, "" for O."""

    prefix: str
    label: str


OUTSIDE = Tag("O", "")


class TokenSpan(NamedTuple):
    """The type of an entity and the indices of its first and last token."""

    label: str
    first: int
    last: int


def parse_tag(text: str) -> Tag | None:
    """Return a tag, or None if the text is not one."""
    match = TAG.fullmatch(text)
    if match is None:
        return None
    return Tag("I" if match[1] == "M" else match[1], match[2]) if match[1] else OUTSIDE


def continues(previous: Tag, tag: Tag) -> bool:
    """Return whether a tag continues the span of the previous tag, by conlleval's rules."""
    return previous.prefix in "BI" and tag.prefix in "IE" and previous.label == tag.label


def entity_spans(tags: Sequence[Tag]) -> list[TokenSpan]:
    """Return the spans of a sentence: a tag other than O begins a span unless it continues the previous span."""
    spans: list[TokenSpan] = []
    for at, (previous, tag) in enumerate(pairwise([OUTSIDE, *tags])):
        if continues(previous, tag):
            spans[-1] = spans[-1]._replace(last=at)
        elif tag.prefix != "O":
            spans.append(TokenSpan(tag.label, at, at))
    return spans


@dataclass
class TagCounts:
    """Counts the tags of a file that are inconsistent with the tags beside them, under the scheme of the file.

    A file with an E or S is in a scheme with span ends (BIOES, BMES): an I or E that continues no span and a B or I
    that no tag continues are inconsistent. Else a file with a B that does not follow a span of its own type is in BIO:
    an I that continues no span is inconsistent. Else the scheme is IOB1, in which all tags are consistent.
    """

    has_ends: bool = False
    is_bio: bool = False  # used only if has_ends is False
    inconsistent_with_ends: int = 0
    inconsistent_bio: int = 0

    def add(self, tags: Sequence[Tag]) -> None:
        """Count the tags of a sentence."""
        for previous, tag, following in zip([OUTSIDE, *tags], tags, [*tags[1:], OUTSIDE], strict=False):
            continues_nothing = tag.prefix in "IE" and not continues(previous, tag)
            is_open = tag.prefix in "BI" and not continues(tag, following)
            self.has_ends |= tag.prefix in "ES"
            self.is_bio |= tag.prefix == "B" and previous.label != tag.label
            self.inconsistent_with_ends += continues_nothing or is_open
            self.inconsistent_bio += continues_nothing

    def inconsistent(self) -> int:
        """Return the number of inconsistent tags under the scheme of the file."""
        if self.has_ends:
            return self.inconsistent_with_ends
        return self.inconsistent_bio if self.is_bio else 0
