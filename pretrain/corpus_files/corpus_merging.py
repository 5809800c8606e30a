"""Merge corpora into one: tokens are copied; sources get new ranges and, on request, new types."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corpus_tokenizer.tokenizer_identity import identity_differences

from corpus_files.corpus import Corpus, CorpusWriter, check_free_space, corpus_bytes, dropped_records


def merge_corpora(
    prefixes: Sequence[str], types: Sequence[int] | None, new_prefix: str | Path, overwrite: bool = False
) -> dict[str, Any]:
    """Concatenate corpora into a new one; return its sidecar.

    types: the new type of the sources of each corpus; None keeps the types. A number is appended to a source name that
    occurs again. Raises ValueError if the corpora differ in tokenizer or dtype.
    """
    if not prefixes:
        raise ValueError("there is no corpus to merge; name some: --merge_path_prefix A,B")
    if types is not None and len(types) != len(prefixes):
        raise ValueError(
            f"types: {len(types)}, corpora: {len(prefixes)}; --merge_path_type takes one type for each corpus"
        )
    if types is not None and min(types, default=0) < 0:
        raise ValueError(f"type {min(types)} is below 0; types are 0, 1, 2 …")
    corpora = [Corpus(prefix) for prefix in prefixes]
    first = corpora[0]
    for other in corpora[1:]:
        different = identity_differences(first.sidecar["tokenizer"], other.sidecar["tokenizer"])
        if other.dtype != first.dtype:
            different = ", ".join(filter(None, [different, f"dtype ({first.dtype.name} and {other.dtype.name})"]))
        if different:
            raise ValueError(
                f"the tokenizers of {first.prefix} and {other.prefix} have different {different}; write one of them "
                "again with the other's tokenizer"
            )
    check_free_space(new_prefix, sum(corpus_bytes(corpus.prefix) for corpus in corpora))
    with CorpusWriter(new_prefix, first.vocab_size, overwrite) as writer:
        sources: list[dict[str, Any]] = []
        for number, corpus in enumerate(corpora):
            for source in corpus.sources:
                moved = {"start": source["start"] + writer.samples, "end": source["end"] + writer.samples}
                kind = source["type"] if types is None else int(types[number])
                name = _unused_name(source["name"], {known["name"] for known in sources})
                sources.append(source | moved | {"name": name, "type": kind})
            writer.add_corpus(corpus)
            for record in dropped_records(corpus.prefix):
                writer.add_dropped({"corpus": corpus.prefix} | record)
        settings = {"merged": [{"prefix": c.prefix, "settings": c.sidecar["settings"]} for c in corpora]}
        return writer.finish(
            sources, first.sidecar["tokenizer"], settings, first.sidecar["versions"], max(c.seq_length for c in corpora)
        )


def _unused_name(name: str, taken: set[str]) -> str:
    """Return the name, or `name-2`, `name-3`, … if it is taken."""
    number, wanted = 2, name
    while name in taken:
        name, number = f"{wanted}-{number}", number + 1
    return name
