"""Inspect a corpus: statistics of its sources, decoded samples, and a histogram of sample lengths."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from corpus_tokenizer.document_encoder import load_encoder

from corpus_files.corpus import CHUNK, Corpus

SHOWN_CHARACTERS = 200  # longest displayed text
BARS = 64  # most bars of a histogram


def length_counts(corpus: Corpus, start: int, end: int) -> np.ndarray:
    """Return how many of the samples start to end have i tokens, at index i: (longest + 1,) int64."""
    counts = np.zeros(1, dtype=np.int64)
    for at in range(start, end, CHUNK):
        found = np.bincount(corpus.lengths[at : min(at + CHUNK, end)])
        width = max(len(counts), len(found))
        counts = np.pad(counts, (0, width - len(counts))) + np.pad(found, (0, width - len(found)))
    return counts


def quantile(counts: np.ndarray, share: float) -> int:
    """Return the least length that at least `share` of the samples do not exceed; counts: from `length_counts`."""
    total = counts.sum()
    return int(np.searchsorted(np.cumsum(counts), max(1, np.ceil(share * total)))) if total else 0


def summary(corpus: Corpus) -> str:
    """Return a line about the corpus and a table of its sources; lengths are in tokens."""
    sidecar = corpus.sidecar
    lines = [
        f"{corpus.prefix}: {sidecar['samples']:,} samples of at most {corpus.seq_length:,} tokens, "
        f"{sidecar['documents']:,} documents, {sidecar['tokens']:,} tokens ({sidecar['dtype']}), "
        f"{sidecar['dropped']:,} dropped, tokenizer {corpus.fingerprint[:16]}",
        f"{'source':<24} {'type':>4} {'start':>11} {'end':>11} {'documents':>11} {'tokens':>14} {'share':>6} "
        f"{'mean':>7} {'min':>5} {'median':>6} {'95 %':>5} {'max':>5}",
    ]
    for source in corpus.sources:
        counts = length_counts(corpus, source["start"], source["end"])
        mean = source["tokens"] / max(1, source["end"] - source["start"])
        spread = (quantile(counts, share) for share in (0, 0.5, 0.95, 1))
        lines.append(
            f"{source['name']:<24} {source['type']:>4} {source['start']:>11,} {source['end']:>11,} "
            f"{source['documents']:>11,} {source['tokens']:>14,} {source['tokens'] / sidecar['tokens']:>6.1%} "
            f"{mean:>7.1f} {' '.join(f'{value:>{width}}' for value, width in zip(spread, (5, 6, 5, 5), strict=True))}"
        )
    return "\n".join(lines)


def samples(corpus: Corpus, tokenizer_path: str | None, show: int) -> Iterator[str]:
    """Yield a line for each of the first `show` samples of each source, decoded.

    tokenizer_path: None: the folder recorded in the sidecar. Raises ValueError if it is not the corpus's tokenizer.
    """
    encoder = load_encoder(tokenizer_path or corpus.sidecar["tokenizer"].get("path", ""))
    if encoder.fingerprint != corpus.fingerprint:
        raise ValueError(
            f"{encoder.folder} is tokenizer {encoder.fingerprint[:16]}, but {corpus.prefix} was written with "
            f"{corpus.fingerprint[:16]}; name that one with --tokenizer_path"
        )
    for source in corpus.sources:
        for index in range(source["start"], min(source["end"], source["start"] + show)):
            text = encoder.engine.decode(corpus[index])
            cut = "…" if len(text) > SHOWN_CHARACTERS else ""
            shown = json.dumps(text[:SHOWN_CHARACTERS], ensure_ascii=False)
            yield f"{source['name']} sample {index}, {len(corpus[index])} tokens: {shown}{cut}"


def draw_lengths(corpus: Corpus, path: Path) -> None:
    """Plot a stacked histogram of sample lengths by source to a PNG; `path` is written atomically."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    longest = max(corpus.seq_length, 1)
    width = -(-(longest + 1) // BARS)  # tokens a bar
    edges = np.arange(0, longest + 1, width)
    figure, axes = pyplot.subplots(figsize=(8, 4))
    below = np.zeros(len(edges), dtype=np.int64)
    for source in corpus.sources:
        counts = length_counts(corpus, source["start"], source["end"])
        bars = np.add.reduceat(np.pad(counts, (0, longest + 1 - len(counts))), edges)
        label = f"{source['name']} ({source['end'] - source['start']:,})"
        axes.bar(edges, bars, width=width, align="edge", bottom=below, label=label)
        below += bars
    axes.set(xlabel="tokens a sample", ylabel="samples", xlim=(0, longest + width))
    axes.set_title(f"{Path(corpus.prefix).name}: {len(corpus):,} samples, {corpus.sidecar['tokens']:,} tokens")
    if len(corpus.sources) <= 12:
        axes.legend()
    unfinished = path.with_name(f"{path.name}.partial")
    figure.savefig(unfinished, format="png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    unfinished.replace(path)
