"""Convert CrossNER's sentences from JSON to the published format: a line of token, tab and BIO tag per token."""

from typing import Any


def crossner_columns(entries: list[dict[str, Any]]) -> list[str]:
    """Return each sentence in the published format, or "" if its entities are not in text order."""
    return [sentence_columns(entry["sentence"].split(" "), entry["entity_list"]) for entry in entries]


def sentence_columns(tokens: list[str], entities: list[dict[str, str]]) -> str:
    tags, begin = ["O"] * len(tokens), 0
    for entity in entities:
        words = entity["name"].split(" ")
        places = (at for at in range(begin, len(tokens)) if tokens[at : at + len(words)] == words)
        if (at := next(places, None)) is None:
            return ""
        begin = at + len(words)
        tags[at:begin] = [f"B-{entity['type']}"] + [f"I-{entity['type']}"] * (len(words) - 1)
    return "".join(f"{token}\t{tag}\n" for token, tag in zip(tokens, tags, strict=True))
