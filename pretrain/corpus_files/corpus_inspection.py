"""Inspect a corpus: statistics of its sources, and decoded samples."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from corpus_tokenizer.document_encoder import load_encoder

from corpus_files.corpus import Corpus, counted

SHOWN_CHARACTERS = 200  # displayed characters of a sample


def corpus_summary(corpus: Corpus) -> str:
    """Return a line about the corpus and a table of its sources, with lengths in tokens."""
    sidecar = corpus.sidecar
    lines = [
        f"{corpus.prefix}: {counted(sidecar['samples'], 'sample')} of at most {corpus.seq_length:,} tokens, "
        f"{counted(sidecar['documents'], 'document')}, {counted(sidecar['tokens'], 'token')} ({sidecar['dtype']}), "
        f"{counted(sidecar['dropped'], 'document')} dropped, tokenizer {corpus.fingerprint[:16]}",
        f"{'source':<24} {'type':>4} {'start':>11} {'end':>11} {'documents':>11} {'tokens':>14} {'share':>6} "
        f"{'mean':>7} {'min':>5} {'median':>6} {'95 %':>5} {'max':>5}",
    ]
    for source in corpus.sources:
        lengths = corpus.lengths[source["start"] : source["end"]]
        shortest, median, high, longest = np.quantile(
            lengths if lengths.size else [0], (0, 0.5, 0.95, 1), method="inverted_cdf"
        )
        lines.append(
            f"{source['name']:<24} {source['type']:>4} {source['start']:>11,} {source['end']:>11,} "
            f"{source['documents']:>11,} {source['tokens']:>14,} {source['tokens'] / sidecar['tokens']:>6.1%} "
            f"{source['tokens'] / max(1, lengths.size):>7.1f} {shortest:>5} {median:>6} {high:>5} {longest:>5}"
        )
    return "\n".join(lines)


def decoded_samples(corpus: Corpus, tokenizer_path: str | None, show: int) -> Iterator[str]:
    """Yield a line with the beginning of the decoded text for each of the first `show` samples of each source.

    tokenizer_path: a tokenizer's folder; None: the folder recorded in the sidecar. Raises ValueError if the corpus was
    written with another tokenizer, or if no folder is recorded or the recorded folder does not exist.
    """
    recorded = corpus.sidecar["tokenizer"].get("path", "")
    if not tokenizer_path and not (recorded and Path(recorded).exists()):
        fact = f"was written with the tokenizer in {recorded}, which does not exist here"
        raise ValueError(
            f"{corpus.prefix} {fact if recorded else 'does not record the folder of its tokenizer'}; name the "
            "tokenizer's folder with --tokenizer_path, or give --show 0 for the counts alone"
        )
    encoder = load_encoder(tokenizer_path or recorded)
    if encoder.fingerprint != corpus.fingerprint:
        raise ValueError(
            f"{encoder.folder} is tokenizer {encoder.fingerprint[:16]}, but {corpus.prefix} was written with "
            f"{corpus.fingerprint[:16]}; name the folder of that tokenizer with --tokenizer_path"
        )
    for source in corpus.sources:
        for index in range(source["start"], min(source["end"], source["start"] + show)):
            text = encoder.engine.decode(corpus[index])
            ellipsis = "…" if len(text) > SHOWN_CHARACTERS else ""
            shown = json.dumps(text[:SHOWN_CHARACTERS], ensure_ascii=False)
            yield f"{source['name']} sample {index}, {counted(len(corpus[index]), 'token')}: {shown}{ellipsis}"
