"""Compare a generated answer with the expected one, and find where an answer ends by itself."""

import re
import unicodedata
from collections import Counter
from math import log2

from knowledge_editing.edit_encoding import NO_SPACES

# A full stop before a digit belongs to a number.
SENTENCE_END = re.compile(r"[.!?](?!\d)|[。！？…\n]")
WORD = re.compile(r"\w+|[^\w\s]")
ARTICLE = re.compile(r"^(the|an?) ")
LETTER = re.compile(r"[^\W" + NO_SPACES.pattern[1:])  # a letter or digit of a script with spaces between words
NOT_AFTER, NOT_BEFORE = f"(?<!{LETTER.pattern})", f"(?!{LETTER.pattern})"
QUOTES = " \t\n\"'`“”‘’«»「」『』《》()[]*_"


def normalize(text: str) -> str:
    """Return a text for comparison: NFKC, lower case, single spaces, without quotation marks at both ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(QUOTES)


def words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text; each character of a script without spaces is a word."""
    return WORD.findall(NO_SPACES.sub(lambda found: f" {found[0]} ", text))


def target_pattern(target: str) -> re.Pattern[str] | None:
    """Return a pattern for the normalised target as whole words; None for an empty target.

    In a script without spaces, every place is the boundary of a word: "NATO的" contains the word "NATO".
    """
    wanted = ARTICLE.sub("", normalize(target))
    if not wanted:
        return None
    before, after = (side * bool(LETTER.match(end)) for side, end in ((NOT_AFTER, wanted[0]), (NOT_BEFORE, wanted[-1])))
    return re.compile(before + re.escape(wanted) + after)


def count_occurrences(answer: str, target: str) -> int:
    """Return how often the normalised target occurs in the normalised answer as whole words."""
    pattern = target_pattern(target)
    return len(pattern.findall(normalize(answer))) if pattern else 0


def begins_with(answer: str, target: str) -> bool:
    """Return whether the normalised answer begins with the normalised target as whole words, articles aside."""
    pattern = target_pattern(target)
    return bool(pattern and pattern.match(ARTICLE.sub("", normalize(answer))))


def first_sentence(text: str, target: str = "") -> str | None:
    """Return the text up to its first sentence end; None if no sentence has ended.

    White space at the beginning is no sentence. A sentence end inside a text that begins like the target belongs to the
    target ("St. Louis").
    """
    start = len(text) - len(text.lstrip())
    wanted = normalize(target)
    for found in SENTENCE_END.finditer(text, start):
        begun = normalize(text[: found.end()])
        if not (len(begun) < len(wanted) and wanted.startswith(begun)):
            return text[start : found.end()]
    return None


def complete_sentences(text: str) -> str | None:
    """Return the text up to its last sentence end; None if there is none."""
    ends = [found.end() for found in SENTENCE_END.finditer(text.strip())]
    return text.strip()[: ends[-1]] if ends else None


def ngram_entropy(text: str) -> float:
    """Return the weighted mean entropy of a text's 2- and 3-grams of words in bits; low for repetitive text.

    The weights are 2/3 and 4/3 (Meng et al. 2022, https://arxiv.org/abs/2202.05262, "fluency", which was computed with
    NLTK's tokenizer).
    """
    found, weighted = words(text), 0.0
    for size, weight in ((2, 2 / 3), (3, 4 / 3)):
        counts = Counter(zip(*(found[at:] for at in range(size)), strict=False))
        total = sum(counts.values())
        weighted -= weight * sum(count / total * log2(count / total) for count in counts.values())
    return weighted / 2
