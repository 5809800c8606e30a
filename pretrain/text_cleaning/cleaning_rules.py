"""The rules of cleaning: quality and repetition thresholds by language, word lists, and near-duplicates.

Most filters are datatrove's; this module sets their thresholds and splits text into words.
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
from text_language.language_detection import CJK_CHARACTERS, LANGUAGE_ALIASES

# Least share of Chinese characters at which the Chinese rules apply. It is lower than language_detection's share: with
# a tenth of Chinese characters, a text fails the English limit of word length (9 of 1,416 real documents were between
# both shares).
CHINESE_SHARE = 0.1

# The thresholds by language and filter. Names are those of datatrove's filters; None: no limit. Comments give the value
# of the paper if it differs (Gopher: arXiv 2112.11446, A1.1 and table A1; FineWeb: arXiv 2406.17557, section 3.6;
# StarCoder: arXiv 2305.06161, section 3.1) and, after "real", the kind of text for which the value was set: it was set
# on real documentation, articles, verse, manuals and reviews, so that dropped documents are mostly tables, listings,
# markup and repetition.
THRESHOLDS: dict[str, dict[str, dict[str, Any]]] = {
    "en": {
        "gopher_quality": {
            "min_doc_words": 6,  # Gopher: 50; real: aphorisms, reviews
            "max_doc_words": 1_000_000,  # Gopher: 100,000, which books exceed
            "min_avg_word_length": 3,
            "max_avg_word_length": 10,
            "max_symbol_word_ratio": 0.1,
            "max_bullet_lines_ratio": 0.9,
            "max_ellipsis_lines_ratio": 0.5,  # Gopher: 0.3; real: one of two lines
            "max_non_alpha_words_ratio": 0.5,  # Gopher: 0.8; real: reference manuals; punctuation counts as words here
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
        "gopher_repetition": {
            "dup_line_frac": 0.5
        },  # Gopher: 0.3; real: brackets and fences of code; others as in Gopher
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
            "short_line_length": 4,  # real: a line of verse has at least 5 characters, 6 with punctuation
            "char_duplicates_ratio": 0.2,
            "new_line_ratio": 0.35,
        },
        "gopher_repetition": {  # n-grams of characters; two characters count as a word
            "dup_line_frac": 0.5,
            # Gopher's limits doubled: datatrove counts a space between the characters of n-grams, but not of the text
            "top_n_grams": ((4, 0.40), (6, 0.36), (8, 0.32)),
            "dup_n_grams": ((10, 0.15), (12, 0.14), (14, 0.13), (16, 0.12), (18, 0.11), (20, 0.10)),
        },
    },
    "code": {"code_lines": {"longest": 1000, "mean": 100, "alphanumeric": 0.25}},  # StarCoder
}
# Texts of fewer words use the limits of OF_SHORT: a couplet may have no stop word, and datatrove's rule of the most
# frequent n-gram also counts an n-gram that occurs once, which is a large share of a single sentence.
SHORT = 100
OF_SHORT: dict[str, dict[str, Any]] = {
    "gopher_quality": {"min_stop_words": None},
    "gopher_repetition": {"top_n_grams": ()},
}
# A document is dropped if it has several entries of a word list, or if few entries are a large share of it.
HARM = {"entries": 4, "share": 0.01, "mentions": 2, "share_of_few": 0.1}
MINHASH = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)  # FineWeb's: similar from about 0.72
SHINGLES = 1024  # shingles hashed at a time; their 112 hashes each fit in the CPU's cache

_ZH = CJK_CHARACTERS
_WORD = re.compile(rf"[{_ZH}]|https?://[!-~]+|[^\W{_ZH}]+(?:['’][^\W{_ZH}]+)*|[^\w\s]+")


class CharacterWords(WordTokenizer):
    """Splits text into Chinese characters, runs of other letters and digits, runs of punctuation, and web addresses."""

    def __init__(self) -> None:
        super().__init__("any")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharacterWords)

    def __hash__(self) -> int:
        return hash(CharacterWords)  # datatrove caches the words of a text by text and tokenizer

    def word_tokenize(self, text: str) -> list[str]:
        """Return the words of a text in order, without white space."""
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """No filter of this module calls it."""
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """No filter of this module calls it."""
        raise NotImplementedError


WORDS: Any = CharacterWords()


def normalised(document: Document) -> str:
    """Return the text by which exact duplicates are found: white space collapsed, NFC normalised."""
    return unicodedata.normalize("NFC", " ".join(document.text.split()))


class CodeLinesFilter(BaseFilter):
    """Drops data and minified or encoded text by the length of lines and the share of letters and digits."""

    name = "code_lines"

    def __init__(self, longest: int, mean: int, alphanumeric: float) -> None:
        super().__init__()
        self.longest, self.mean, self.alphanumeric = longest, mean, alphanumeric

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True to keep the document, else False and the reason."""
        lines = [len(line) for line in doc.text.splitlines()] or [0]
        if max(lines) > self.longest:
            return False, "code_long_line"
        if sum(lines) / len(lines) > self.mean:
            return False, "code_long_lines_on_average"
        letters = len(re.sub(r"[\W_]+", "", doc.text))
        return (False, "code_few_letters") if letters < self.alphanumeric * len(doc.text) else True


class RepetitionFilter(GopherRepetitionFilter):
    """GopherRepetitionFilter with the same result in less time.

    Every word of a repeated n-gram is also in a repeated n-gram of the smallest n. One pass counts the characters of
    the latter; if they are below the lowest limit of all n, the passes for all n are skipped.
    """

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits, language=WORDS)
        self.others = GopherRepetitionFilter(**(limits | {"dup_n_grams": ()}), language=WORDS)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True to keep the document, else False and datatrove's reason."""
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


class WordListFilter(C4BadWordsFilter):
    """C4's bad-words filter with other word lists; drops a document only if it reaches the limits of HARM.

    lists: the entries of each language, in lower case.
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
        """True to keep the document, else False and C4's reason."""
        language, text = doc.metadata["language"], doc.text.lower()
        # searching for each entry is ten times as fast as the pattern, and most documents contain no entry
        pattern = self._get_badwords(language) if any(e in text for e in self.lists.get(language, ())) else None
        found = pattern.findall(text) if pattern else []
        share = sum(map(len, found)) / max(1, len(text))
        several = len(set(found)) >= HARM["entries"] and share >= HARM["share"]
        mostly_listed = len(found) >= HARM["mentions"] and share >= HARM["share_of_few"]
        return (False, "document_removed_with_badwords") if several or mostly_listed else True


def read_lists(folder: Path) -> dict[str, list[str]]:
    """Read the word lists en.txt and zh.txt of a folder: one entry per line; lines that begin with # are comments.

    english.txt and chinese.txt are also read. Raises FileNotFoundError if the folder has no list, ValueError if a list
    is not UTF-8.
    """
    entries: dict[str, set[str]] = {}
    for name, language in {"en": "en", "zh": "zh", **LANGUAGE_ALIASES}.items():
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


class FilterByLanguage(BaseFilter):
    """Applies the filter of a document's language; documents in languages without a filter pass.

    filters: for each language, the usual filter, and the filter for texts of fewer than SHORT words.
    """

    def __init__(self, name: str, filters: dict[str, tuple[BaseFilter, BaseFilter]], writer: Any = None) -> None:
        self.name = name
        super().__init__(writer)
        self.filters = filters

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True to keep the document, else False and the filter's reason."""
        if doc.metadata["language"] not in self.filters:
            return True
        usual, of_short = self.filters[doc.metadata["language"]]
        if usual is not of_short and len(split_into_words(doc.text, WORDS)) < SHORT:
            return of_short.filter(doc)
        return usual.filter(doc)


MAKERS: dict[str, Any] = {
    "gopher_quality": lambda **limits: GopherQualityFilter(**limits, language=WORDS),
    "fineweb_quality": lambda **limits: FineWebQualityFilter(**limits, language=WORDS),
    "gopher_repetition": RepetitionFilter,
    "code_lines": CodeLinesFilter,
}


def by_language(name: str, writer: DiskWriter | None = None) -> FilterByLanguage:
    """Return the filter `name` of MAKERS with the THRESHOLDS of each language."""
    make, filters = MAKERS[name], {}
    for language, limits in THRESHOLDS.items():
        if name in limits:
            usual = make(**limits[name])
            of_short = make(**(limits[name] | OF_SHORT[name])) if name in OF_SHORT else usual
            filters[language] = (usual, of_short)
    return FilterByLanguage(name, filters, writer)


class MinhashSignatures(MinhashDedupSignature):
    """datatrove's MinHash signatures, computed in parts, so that memory does not grow with the document."""

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """Return the minimum of each hash function: shingles (words, 1) uint64 to (buckets, hashes)."""
        parts = [
            super(MinhashSignatures, self).get_signature(shingles[at : at + SHINGLES])
            for at in range(0, len(shingles), SHINGLES)
        ]
        return [[min(column) for column in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]
