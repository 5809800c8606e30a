"""The filters of cleaning: thresholds of quality and repetition for each language, and near-duplicates.

Most filters are datatrove's; this module sets their thresholds and splits text into words.
"""

import re
import unicodedata
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import (
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils.text import split_into_words
from datatrove.utils.word_tokenizers import WordTokenizer
from text_language.language_detection import CJK_CHARACTERS

from text_cleaning.text_shape import is_verse, prose_of

# The Chinese rules apply from this share of Chinese characters on. It is half of language_detection's share, since the
# English limit on word length already drops texts in which a tenth of the characters are Chinese. (9 of 1,416 real
# documents have a share between the two values.)
CHINESE_SHARE = 0.1

# Thresholds by language and filter, with the parameter names of datatrove's filters; None: no limit. They were set on
# real documentation, articles, verse, manuals and reviews, so that mostly tables, listings, markup and repetition are
# dropped. A comment gives the value of the paper if it differs (Gopher: arXiv 2112.11446, A1.1 and table A1; FineWeb:
# arXiv 2406.17557, section 3.6; StarCoder: arXiv 2305.06161, section 3.1) and, after "for", the texts that the paper's
# value would drop.
THRESHOLDS: dict[str, dict[str, dict[str, Any]]] = {
    "en": {
        "gopher_quality": {
            "min_doc_words": 6,  # Gopher: 50; for aphorisms and reviews
            "max_doc_words": 1_000_000,  # Gopher: 100,000; for books
            "min_avg_word_length": 3,
            "max_avg_word_length": 10,
            "max_symbol_word_ratio": 0.1,
            "max_bullet_lines_ratio": 0.9,
            "max_ellipsis_lines_ratio": 0.5,  # Gopher: 0.3; see ELLIPSIS_LINES
            "max_non_alpha_words_ratio": 0.5,  # Gopher: 0.8; for manuals; here punctuation counts as words
            "min_stop_words": 2,  # of datatrove's eight, which are Gopher's
        },
        "fineweb_quality": {
            "line_punct_thr": 0.05,  # FineWeb: 0.12; for manuals with headings, options and examples
            "line_punct_exclude_zero": True,  # for verse and signatures
            "short_line_thr": 0.9,  # FineWeb: 0.67
            "short_line_length": 20,  # FineWeb: 30; for verse
            "char_duplicates_ratio": 0.2,  # FineWeb: 0.01
            "new_line_ratio": 0.35,  # FineWeb: 0.3
        },
        "gopher_repetition": {  # other limits as in Gopher
            "dup_line_frac": 0.5,  # Gopher: 0.3; for lines of code that consist of a bracket or a fence
        },
    },
    "zh": {
        "gopher_quality": {  # a word is one character
            "min_doc_words": 10,  # for couplets, which have 10
            "max_doc_words": 2_000_000,
            "min_avg_word_length": None,
            "max_avg_word_length": None,
            "max_symbol_word_ratio": 0.1,
            "max_bullet_lines_ratio": 0.9,
            "max_ellipsis_lines_ratio": 0.5,  # Gopher: 0.3; see ELLIPSIS_LINES
            "max_non_alpha_words_ratio": 0.5,
            "min_stop_words": 2,
            "stop_words": list("的了是在不有和我人这也就与为之而以于其者无一上大来个们中到他她你说要会可自何"),
        },
        "fineweb_quality": {
            "line_punct_thr": 0.05,
            "line_punct_exclude_zero": True,
            "short_line_thr": 0.95,
            "short_line_length": 4,  # for verse, whose lines have at least 5 characters, 6 with punctuation
            "char_duplicates_ratio": 0.2,
            "new_line_ratio": 0.35,
        },
        "gopher_repetition": {  # n-grams of characters; two characters count as a word
            "dup_line_frac": 0.5,
            # top_n_grams: twice Gopher's limits, as datatrove counts spaces between the characters of an n-gram, which
            # the text does not have
            "top_n_grams": ((4, 0.40), (6, 0.36), (8, 0.32)),
            "dup_n_grams": ((10, 0.15), (12, 0.14), (14, 0.13), (16, 0.12), (18, 0.11), (20, 0.10)),
        },
    },
    "code": {"code_lines": {"longest": 1000, "mean": 100, "alphanumeric": 0.25}},  # StarCoder
}
# Thresholds that replace those above for texts of fewer than SHORT_TEXT_WORDS words. A couplet may have no stop word, a
# dialogue has many ellipses, and classics repeat a phrase. datatrove's rule on the most frequent n-gram also counts an
# n-gram that occurs once, which is a large share of a single sentence. With a limit of 0.6, three copies of a part are
# dropped, but not two.
SHORT_TEXT_WORDS = {"en": 100, "zh": 200}
SHORT_TEXT_THRESHOLDS: dict[str, dict[str, Any]] = {
    "gopher_quality": {"min_stop_words": None, "max_symbol_word_ratio": None},
    "gopher_repetition": {"top_n_grams": (), "dup_n_grams": ((10, 0.6),)},
}
# Thresholds that replace THRESHOLDS for verse (text_shape.py), which has short lines and refrains.
VERSE_THRESHOLDS: dict[str, dict[str, Any]] = {
    "gopher_quality": SHORT_TEXT_THRESHOLDS["gopher_quality"] | {"min_avg_word_length": None},
    "fineweb_quality": {"short_line_thr": 1, "new_line_ratio": 1, "char_duplicates_ratio": 0.6},
    "gopher_repetition": SHORT_TEXT_THRESHOLDS["gopher_repetition"]
    | {"dup_line_frac": 0.6, "dup_line_char_frac": 0.6, "dup_para_frac": 0.6, "dup_para_char_frac": 0.6},
}
# max_ellipsis_lines_ratio applies from this number of lines with an ellipsis on; a text of one line may end with "...".
ELLIPSIS_LINES = 3
# FineWeb's values: documents with a similarity of 0.7 are found with probability 0.56, with 0.8 with probability 0.92.
MINHASH = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
SHINGLES_PER_PASS = 1024  # n-grams hashed at a time: 112 hashes of each fit in the CPU's cache

_ZH = CJK_CHARACTERS
_WORD = re.compile(rf"[{_ZH}]|https?://[!-~]+|[^\W{_ZH}]+(?:['’][^\W{_ZH}]+)*|[^\w\s]+")


class MixedTextTokenizer(WordTokenizer):
    """Splits text into Chinese characters, runs of other letters and digits, runs of punctuation, and web addresses."""

    def __init__(self) -> None:
        super().__init__("any")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MixedTextTokenizer)

    def __hash__(self) -> int:
        return hash(MixedTextTokenizer)  # text and tokenizer are the key of datatrove's cache of words

    def word_tokenize(self, text: str) -> list[str]:
        """Return the words of a text in order, without white space."""
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Raise NotImplementedError; no filter of this module calls this method."""
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Raise NotImplementedError; no filter of this module calls this method."""
        raise NotImplementedError


WORD_TOKENIZER: Any = MixedTextTokenizer()


def normalised_text(document: Document) -> str:
    """Return the text in Unicode NFC with white space collapsed; exact duplicates have the same normalised text."""
    return unicodedata.normalize("NFC", " ".join(document.text.split()))


class CodeLinesFilter(BaseFilter):
    """Drops data and minified or encoded text.

    longest: maximum characters of a line. mean: maximum characters per line on average. alphanumeric: minimum share of
    letters and digits.
    """

    name = "code_lines"

    def __init__(self, longest: int, mean: int, alphanumeric: float) -> None:
        super().__init__()
        self.longest, self.mean, self.alphanumeric = longest, mean, alphanumeric

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return True to keep the document, else False and the reason."""
        lines = [len(line) for line in doc.text.splitlines()] or [0]
        if max(lines) > self.longest:
            return False, "code_long_line"
        if sum(lines) / len(lines) > self.mean:
            return False, "code_long_lines_on_average"
        letters = len(re.sub(r"[\W_]+", "", doc.text))
        return (False, "code_few_letters") if letters < self.alphanumeric * len(doc.text) else True


class RepetitionFilter(GopherRepetitionFilter):
    """GopherRepetitionFilter with the same result in less time.

    Every word of a repeated n-gram is also in a repeated n-gram of the smallest n. One pass counts the characters in
    repeated n-grams of the smallest n; if their share is below the lowest limit of all n, no n needs a pass of its own.
    """

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits, language=WORD_TOKENIZER)
        self.other_rules = GopherRepetitionFilter(**(limits | {"dup_n_grams": ()}), language=WORD_TOKENIZER)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return True to keep the document, else False and datatrove's reason."""
        n, lowest_limit = min(n for n, _ in self.dup_n_grams), min(limit for _, limit in self.dup_n_grams)
        words = split_into_words(doc.text, WORD_TOKENIZER)
        seen, repeated, end = set(), 0, 0
        for at, n_gram in enumerate(zip(*(words[k:] for k in range(n)), strict=False)):
            if n_gram in seen:
                repeated += sum(map(len, words[max(at, end) : at + n]))
                end = at + n
            else:
                seen.add(n_gram)
        return super().filter(doc) if repeated > lowest_limit * len(doc.text) else self.other_rules.filter(doc)


class QualityFilter(GopherQualityFilter):
    """GopherQualityFilter that limits lines with an ellipsis only in texts with at least ELLIPSIS_LINES such lines."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits, language=WORD_TOKENIZER)
        self.other_rules = GopherQualityFilter(**(limits | {"max_ellipsis_lines_ratio": None}), language=WORD_TOKENIZER)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return True to keep the document, else False and datatrove's reason."""
        ends = sum(line.rstrip().endswith(("...", "…")) for line in doc.text.splitlines())
        return super().filter(doc) if ends >= ELLIPSIS_LINES else self.other_rules.filter(doc)


class PerLanguageFilter(BaseFilter):
    """Applies the filters of a document's language in order; a document passes if its language has no filters.

    filters: language -> for each filter, its variants for texts of the usual shape, for short texts and for verse.
    """

    def __init__(self, name: str, filters: dict[str, list[tuple[BaseFilter, ...]]], writer: Any = None) -> None:
        self.name = name
        super().__init__(writer)
        self.filters = filters

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return True to keep the document, else False and the reason of the first filter that drops it.

        A document with listings is also kept if the filters keep its prose without the listings, and this prose is not
        short.
        """
        language = doc.metadata["language"]
        result = self.judge(doc.text, language)
        if result is not True and language in SHORT_TEXT_WORDS:
            prose = prose_of(doc.text)
            if prose != doc.text and len(split_into_words(prose, WORD_TOKENIZER)) >= SHORT_TEXT_WORDS[language]:
                return self.judge(prose, language) is True or result
        return result

    def judge(self, text: str, language: str) -> bool | tuple[bool, str]:
        """Return True if the filters of a language keep a text, else False and the reason of the first that drops it.

        If the usual variant drops a short text or verse, the variant for short texts or verse decides.
        """
        result = self._apply(text, language, 0)
        if result is True or language not in SHORT_TEXT_WORDS:
            return result
        short = len(split_into_words(text, WORD_TOKENIZER)) < SHORT_TEXT_WORDS[language]
        variant = 2 if is_verse(text) else int(short)
        return self._apply(text, language, variant) if variant else result

    def _apply(self, text: str, language: str, variant: int) -> bool | tuple[bool, str]:
        """Apply a variant of the filters of a language."""
        results = (variants[variant].filter(Document(text, "")) for variants in self.filters.get(language, ()))
        return next((result for result in results if result is not True), True)


# The filters of each name that --skip takes and the report shows.
FILTERS: dict[str, dict[str, Any]] = {
    "quality": {
        "gopher_quality": QualityFilter,
        "fineweb_quality": lambda **limits: FineWebQualityFilter(**limits, language=WORD_TOKENIZER),
        "code_lines": CodeLinesFilter,
    },
    "repetition": {"gopher_repetition": RepetitionFilter},
}


def make_per_language_filter(name: str, writer: DiskWriter | None = None) -> PerLanguageFilter:
    """Return the filter `name` of FILTERS with the THRESHOLDS of each language.

    writer: writes the documents that the filter drops.
    """
    filters = {
        language: [
            tuple(
                make(**(limits[rules] | other.get(rules, {})))
                for other in ({}, SHORT_TEXT_THRESHOLDS, VERSE_THRESHOLDS)
            )
            for rules, make in FILTERS[name].items()
            if rules in limits
        ]
        for language, limits in THRESHOLDS.items()
    }
    return PerLanguageFilter(name, filters, writer)


class MinhashSignatures(MinhashDedupSignature):
    """datatrove's MinHash signatures, computed in parts, so that memory does not grow with the document."""

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """Return the minimum of each hash function, (buckets, hashes). shingles: (words, 1) uint64."""
        parts = [
            super(MinhashSignatures, self).get_signature(shingles[at : at + SHINGLES_PER_PASS])
            for at in range(0, len(shingles), SHINGLES_PER_PASS)
        ]
        return [[min(column) for column in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]
