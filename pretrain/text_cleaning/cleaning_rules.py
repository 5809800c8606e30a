"""What makes a document be dropped: rules of quality and repetition, listed words, and what counts as a duplicate.

The rules are datatrove's filters; here are their thresholds for each language, and how a text is cut into words.

`pretrain/clean.py` is the command line.
"""

import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import (
    C4BadWordsFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils.text import split_into_words
from datatrove.utils.word_tokenizers import WordTokenizer
from text_language.language_detection import CHINESE_CHARACTERS, OTHER_NAMES

LANGUAGES = ("auto", "en", "zh", "code")
# Share of Chinese characters from which the Chinese rules apply. It is lower than for a prompt's language: the English
# rules take a tenth of Chinese characters for words that are too long (9 of 1,416 real documents between the shares).
CHINESE_SHARE = 0.1

# Every threshold: of which filter, for which language. Names are those of datatrove's filters; None: no such limit.
# Gopher: arXiv 2112.11446, A1.1 and table A1; FineWeb: arXiv 2406.17557, section 3.6; StarCoder: arXiv
# 2305.06161, section 3.1. "real": set on real documentation, articles, verse, manuals and reviews, until what went
# was mostly tables, listings, markup and repetition; pretrain/README.md shows how much of what goes.
THRESHOLDS: dict[str, dict[str, dict[str, Any]]] = {
    "en": {
        "gopher_quality": {
            "min_doc_words": 6,  # Gopher: 50; real: aphorisms, reviews
            "max_doc_words": 1_000_000,  # Gopher: 100,000, which books have
            "min_avg_word_length": 3,
            "max_avg_word_length": 10,
            "max_symbol_word_ratio": 0.1,
            "max_bullet_lines_ratio": 0.9,
            "max_ellipsis_lines_ratio": 0.5,  # Gopher: 0.3; real: one of two lines
            "max_non_alpha_words_ratio": 0.5,  # Gopher: 0.8; real: reference manuals, and marks are words here
            "min_stop_words": 2,  # of datatrove's eight, which are Gopher's
        },
        "fineweb_quality": {
            "line_punct_thr": 0.05,  # FineWeb: 0.12; real: manuals have headings, options and examples
            "line_punct_exclude_zero": True,  # verse, signatures
            "short_line_thr": 0.9,  # FineWeb: 0.67
            "short_line_length": 20,  # FineWeb: 30, of web pages; real: verse
            "char_duplicates_ratio": 0.2,  # FineWeb: 0.01
            "new_line_ratio": 0.35,  # FineWeb: 0.3
        },
        "gopher_repetition": {"dup_line_frac": 0.5},  # Gopher: 0.3; real: brackets and fences of code; else Gopher's
    },
    "zh": {
        "gopher_quality": {  # a word is one character
            "min_doc_words": 10,  # real: a couplet has 10
            "max_doc_words": 2_000_000,
            "min_avg_word_length": None,
            "max_avg_word_length": None,
            "max_symbol_word_ratio": 0.1,
            "max_bullet_lines_ratio": 0.9,
            "max_ellipsis_lines_ratio": 0.5,  # Gopher: 0.3; real: one of two lines
            "max_non_alpha_words_ratio": 0.5,
            "min_stop_words": 2,
            "stop_words": list("的了是在不有和我人这也就与为之而以于其者无一上大来个们中到他她你说要会可自何"),
        },
        "fineweb_quality": {
            "line_punct_thr": 0.05,
            "line_punct_exclude_zero": True,
            "short_line_thr": 0.95,
            "short_line_length": 4,  # real: a line of verse has 5 or more, with its mark 6
            "char_duplicates_ratio": 0.2,
            "new_line_ratio": 0.35,
        },
        "gopher_repetition": {  # n-grams are of characters: two for a word
            "dup_line_frac": 0.5,
            # Gopher's limits doubled: datatrove measures n-grams with a blank between characters, the text without
            "top_n_grams": ((4, 0.40), (6, 0.36), (8, 0.32)),
            "dup_n_grams": ((10, 0.15), (12, 0.14), (14, 0.13), (16, 0.12), (18, 0.11), (20, 0.10)),
        },
    },
    "code": {"code_lines": {"longest": 1000, "mean": 100, "alphanumeric": 0.25}},  # StarCoder
}
SHORT = 100  # words; shorter texts have these instead: a couplet may lack every stop word, and datatrove's rule of the
OF_SHORT: dict[str, dict[str, Any]] = {  # commonest n-gram counts one that occurs once, a large share of one sentence
    "gopher_quality": {"min_stop_words": None},
    "gopher_repetition": {"top_n_grams": ()},
}
# Of a listed word's document: it goes only where several are in it, or where it is little else.
HARM = {"entries": 4, "share": 0.01, "mentions": 2, "share_of_few": 0.1}
MINHASH = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)  # FineWeb's: similar from about 0.72
SHINGLES = 1024  # hashed at a time: 112 hashes of each stay in the processor's cache

_ZH = CHINESE_CHARACTERS
_WORD = re.compile(rf"[{_ZH}]|https?://[!-~]+|[^\W{_ZH}]+(?:['’][^\W{_ZH}]+)*|[^\w\s]+")


class Words(WordTokenizer):
    """Words without a model: a Han character, a run of other letters and digits, a run of marks, a web address."""

    def __init__(self) -> None:
        super().__init__("any")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Words)

    def __hash__(self) -> int:
        return hash(Words)  # datatrove caches the words of a text by text and tokenizer

    def word_tokenize(self, text: str) -> list[str]:
        """All words, in order; white space is in none."""
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Not asked for by any filter that is used here."""
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Not asked for by any filter that is used here."""
        raise NotImplementedError


WORDS: Any = Words()


def normalised(document: Document) -> str:
    """What two documents have in common that are exact duplicates: their text but for white space and code points."""
    return unicodedata.normalize("NFC", " ".join(document.text.split()))


# --- filters ----------------------------------------------------------------------------------------------------------


class CodeLines(BaseFilter):
    """Drops code that nobody wrote: data, minified or encoded text, by the length of lines and share of letters."""

    name = "code_lines"

    def __init__(self, longest: int, mean: int, alphanumeric: float) -> None:
        super().__init__()
        self.longest, self.mean, self.alphanumeric = longest, mean, alphanumeric

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether to keep it; else the reason."""
        lines = [len(line) for line in doc.text.splitlines()] or [0]
        if max(lines) > self.longest:
            return False, "code_long_line"
        if sum(lines) / len(lines) > self.mean:
            return False, "code_long_lines_on_average"
        letters = len(re.sub(r"[\W_]+", "", doc.text))
        return (False, "code_few_letters") if letters < self.alphanumeric * len(doc.text) else True


class Repetition(GopherRepetitionFilter):
    """datatrove's, with the same result in less time.

    All words that a rule of duplicate n-grams counts are in repeated n-grams of its shortest kind, too. Where those are
    fewer than any of these rules allows, which takes one pass to see, the passes for the others are left out.
    """

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits, language=WORDS)
        self.others = GopherRepetitionFilter(**(limits | {"dup_n_grams": ()}), language=WORDS)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether to keep it; else datatrove's reason."""
        n, least = min(n for n, _ in self.dup_n_grams), min(limit for _, limit in self.dup_n_grams)
        words = split_into_words(doc.text, WORDS)
        seen, repeated, end = set(), 0, 0
        for at, n_gram in enumerate(zip(*(words[k:] for k in range(n)), strict=False)):
            if n_gram in seen:
                repeated += sum(map(len, words[max(at, end) : at + n]))
                end = at + n
            else:
                seen.add(n_gram)
        return super().filter(doc) if repeated > least * len(doc.text) else self.others.filter(doc)


class ListedWords(C4BadWordsFilter):
    """C4's filter with lists of our own, and not for a mention: see HARM.

    lists: of each language, the entries, in lower case.
    """

    name = "listed_words"

    def __init__(self, lists: dict[str, list[str]], writer: DiskWriter | None = None) -> None:
        super().__init__(fail_on_missing_language=False, exclusion_writer=writer)
        self.lists = lists

    def _get_badwords(self, lang: str) -> re.Pattern[str] | None:
        if lang not in self._badwords_regex and self.lists.get(lang):
            ordered = sorted(self.lists[lang], key=lambda entry: (-len(entry), entry))
            either = "|".join(map(re.escape, ordered))
            self._badwords_regex[lang] = re.compile(either if lang == "zh" else rf"\b(?:{either})\b")
        return self._badwords_regex.get(lang)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether to keep it; else C4's reason."""
        language, text = doc.metadata["language"], doc.text.lower()
        # looking for each entry is some ten times as fast as the pattern, which most documents then do not need
        pattern = self._get_badwords(language) if any(e in text for e in self.lists.get(language, ())) else None
        found = pattern.findall(text) if pattern else []
        share = sum(map(len, found)) / max(1, len(text))
        several = len(set(found)) >= HARM["entries"] and share >= HARM["share"]
        little_else = len(found) >= HARM["mentions"] and share >= HARM["share_of_few"]
        return (False, "document_removed_with_badwords") if several or little_else else True


def read_lists(folder: Path) -> dict[str, list[str]]:
    """Read the word lists en.txt and zh.txt of a folder: one entry a line; lines that begin with # are comments.

    english.txt and chinese.txt are read as well. Raises FileNotFoundError where the folder has no list, ValueError
    where a list is not UTF-8.
    """
    entries: dict[str, set[str]] = {}
    for name, language in {"en": "en", "zh": "zh", **OTHER_NAMES}.items():
        path = folder / f"{name}.txt"
        if path.is_file():
            try:
                lines = [line.strip().lower() for line in path.read_text(encoding="utf-8-sig").splitlines()]
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path} is not UTF-8 ({error.reason} at byte {error.start + 1}); convert it"
                ) from None
            entries.setdefault(language, set()).update(line for line in lines if line and not line.startswith("#"))
    if not entries:
        raise FileNotFoundError(f"{folder} has neither en.txt nor zh.txt; name a folder with them: --word_lists")
    return {language: sorted(found) for language, found in entries.items()}


class ByLanguage(BaseFilter):
    """A filter with thresholds of its own for each language; a document in another language passes.

    filters: of each language, the one for most texts and the one for SHORT texts.
    """

    def __init__(self, name: str, filters: dict[str, tuple[BaseFilter, BaseFilter]], writer: Any = None) -> None:
        self.name = name
        super().__init__(writer)
        self.filters = filters

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the language's filter keeps it; else its reason."""
        if doc.metadata["language"] not in self.filters:
            return True
        usual, of_short = self.filters[doc.metadata["language"]]
        if usual is not of_short and len(split_into_words(doc.text, WORDS)) < SHORT:
            return of_short.filter(doc)
        return usual.filter(doc)


MAKERS: dict[str, Any] = {
    "gopher_quality": lambda **limits: GopherQualityFilter(**limits, language=WORDS),
    "fineweb_quality": lambda **limits: FineWebQualityFilter(**limits, language=WORDS),
    "gopher_repetition": Repetition,
    "code_lines": CodeLines,
}


def by_language(name: str, writer: DiskWriter | None = None) -> ByLanguage:
    """The filter of that name in THRESHOLDS, for all languages."""
    make, filters = MAKERS[name], {}
    for language, limits in THRESHOLDS.items():
        if name in limits:
            usual = make(**limits[name])
            of_short = make(**(limits[name] | OF_SHORT[name])) if name in OF_SHORT else usual
            filters[language] = (usual, of_short)
    return ByLanguage(name, filters, writer)


class Signatures(MinhashDedupSignature):
    """datatrove's, with the same result in memory that does not grow with the document."""

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """The least of each hash function's values; shingles (words, 1) uint64, returns buckets x hashes."""
        parts = [
            super(Signatures, self).get_signature(shingles[at : at + SHINGLES])
            for at in range(0, len(shingles), SHINGLES)
        ]
        return [[min(column) for column in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]
