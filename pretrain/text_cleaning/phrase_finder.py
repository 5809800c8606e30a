"""Find the phrases of a list in a text, also with lookalike characters, in time linear in the length of the text."""

import re
from collections.abc import Iterable
from typing import Any

# Digits, signs and Cyrillic letters that stand for a Latin letter.
LOOKALIKES = {
    "a": "4@а", "c": "с", "e": "3е", "i": "1!|і", "l": "1|", "o": "0о", "p": "р", "s": "5$", "t": "7", "x": "х",
    "y": "у",
}  # fmt: skip


class PhraseFinder:
    """Finds phrases in folded text (text_folding.py), with a pattern that is a tree of their common beginnings.

    The words of a phrase may also be joined or hyphenated. whole_words: phrases match only whole words, also with a
    final s; if false, they match anywhere.
    """

    def __init__(self, phrases: Iterable[str], whole_words: bool) -> None:
        tree: dict[str, Any] = {}
        for phrase in phrases:
            node = tree
            for character in phrase:
                node = node.setdefault(character, {})
            node[""] = {}  # a phrase ends here
        for letter, rest in list(tree.items()):
            digits = filter(str.isdigit, LOOKALIKES.get(letter, ""))
            tree |= {digit: rest for digit in digits if whole_words and digit not in tree}
        self.pattern = re.compile(
            rf"(?<![a-z0-9]){_pattern(tree)}(?:'?s)?(?![a-z0-9])" if whole_words else _pattern(tree)
        )

    def find(self, text: str) -> list[str]:
        """Return the phrases in a folded text in order, as the text spells them."""
        return [phrase for phrase in self.pattern.findall(text) if _is_spelling(phrase)]


def _is_spelling(text: str) -> bool:
    """Return whether at least half of the characters are letters, all if there are up to three: `530` is not "seo"."""
    letters = sum(map(str.isalpha, text))
    return letters == len(text) or letters * 2 >= len(text) > 3


def _pattern(tree: dict[str, Any], first: bool = True) -> str:
    """Return the pattern of a tree: character -> subtree, "" where a phrase ends. It prefers longer phrases.

    first: the tree begins with the first characters of phrases. These are matched as they are, since `re` finds a fixed
    character fast.
    """
    found = [
        (re.escape(character) if first else _spellings(character)) + _pattern(rest, False)
        for character, rest in sorted(tree.items())
        if character
    ]
    pattern = found[0] if len(found) == 1 else f"(?:{'|'.join(found)})"
    return f"(?:{pattern})?" if found and "" in tree else pattern if found else ""


def _spellings(character: str) -> str:
    """Return the pattern of a character of a phrase, which also matches its lookalikes."""
    if character == " ":
        return r"[\s-]?"
    return f"[{character}{LOOKALIKES[character]}]" if character in LOOKALIKES else re.escape(character)
