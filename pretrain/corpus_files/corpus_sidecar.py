"""The files of a corpus and its JSON sidecar, which names sources, tokenizer, settings and hashes."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# The types of the values that are read from a sidecar.
SIDECAR: dict[str, Any] = {
    "sources": [{"name": str, "type": int, "start": int, "end": int, "documents": int, "tokens": int}],
    "tokenizer": {"fingerprint": str, "vocab_size": int}, "sha256": {"bin": str, "idx": str}, "dtype": str,
    "samples": int, "documents": int, "tokens": int, "dropped": int, "seq_length": int, "settings": dict,
    "versions": dict,
}  # fmt: skip


def corpus_paths(prefix: str | Path) -> dict[str, Path]:
    """Return the paths of a corpus by suffix: bin, idx, json and dropped.jsonl."""
    return {ending: Path(f"{prefix}.{ending}") for ending in ("bin", "idx", "json", "dropped.jsonl")}


def read_sidecar(prefix: str | Path) -> dict[str, Any]:
    """Parse `<prefix>.json`; raises FileNotFoundError if there is no corpus, ValueError if it is damaged."""
    path = corpus_paths(prefix)["json"]
    if not path.is_file():
        if corpus_paths(prefix)["idx"].is_file():
            raise ValueError(
                f"{path} is missing beside {prefix}.idx: sources and tokenizer are unknown without it; "
                "copy it too, or write the corpus again: python pretrain/preprocess.py --mode write"
            )
        raise FileNotFoundError(
            f"{path} does not exist; give a corpus by its prefix, the path without .bin, "
            "or write one: python pretrain/preprocess.py --mode write"
        )
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a corpus sidecar ({error}); copy or write the corpus again") from None
    fault = sidecar_fault(sidecar, SIDECAR)
    if not fault and "path" in sidecar["tokenizer"]:
        fault = sidecar_fault(sidecar["tokenizer"]["path"], str, "'path'")
    if fault:
        raise ValueError(f"{path} is not a corpus sidecar ({fault}); copy or write the corpus again")
    return sidecar


def sidecar_fault(value: Any, form: Any, place: str = "it") -> str:
    """Return how a JSON value differs from a form such as SIDECAR, or ""; objects may have more keys."""
    kind: Any = form if isinstance(form, type) else type(form)
    if type(value) is not kind or (kind is int and value < 0):
        name = {int: "a whole number", str: "text", list: "a list", dict: "an object"}[kind]
        return f"{place} is {value!r:.60}, not {name}"
    inner: Iterable[tuple[str, Any, Any]] = ()
    if isinstance(form, dict):
        if missing := [key for key in form if key not in value]:
            return f"{missing[0]!r} is missing"
        inner = ((repr(key), value[key], form[key]) for key in form)
    elif isinstance(form, list):
        inner = ((f"item {number} of {place}", item, form[0]) for number, item in enumerate(value, 1))
    return next(filter(None, (sidecar_fault(item, part, name) for name, item, part in inner)), "")
