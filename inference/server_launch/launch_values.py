"""Check options whose values are JSON or adapters before vLLM is imported; each error is one line."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

JSON_LISTS = ("allowed-origins", "allowed-methods", "allowed-headers")
# vLLM needs JSON objects here. Its parser also accepts values of other types, with which vLLM fails later.
JSON_OBJECTS = (
    "attention-config", "aux-output-config", "compilation-config", "custom-histogram-buckets",
    "default-chat-template-kwargs", "default-mm-loras", "diffusion-config", "ec-manager-config", "ec-transfer-config",
    "engram-config", "eplb-config", "fault-tolerance-config", "hf-overrides", "ir-op-priority", "kernel-config",
    "kv-events-config", "kv-transfer-config", "limit-mm-per-prompt", "logging-config", "media-io-kwargs",
    "mm-processor-kwargs", "model-class-overrides", "model-loader-extra-config", "override-generation-config",
    "pooler-config", "profiler-config", "quantization-config", "reasoning-config", "speculative-config",
    "structured-outputs-config", "watermark-config", "weight-transfer-config",
)  # fmt: skip
NO_VALUE = ("", "None")


def check_json(args: argparse.Namespace) -> None:
    """Raise ValueError if an option of JSON_LISTS or JSON_OBJECTS has a value of another type."""
    for name in (*JSON_LISTS, *JSON_OBJECTS):
        text = getattr(args, name.replace("-", "_"))
        if text is None or (name in JSON_OBJECTS and text in NO_VALUE):
            continue
        value = read_json(text)
        if name in JSON_OBJECTS and not isinstance(value, dict):
            raise ValueError(f"""--{name} takes a JSON object such as '{{"name": 1}}', not {text!r:.80}""")
        if name in JSON_LISTS and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise ValueError(f"""--{name} takes a JSON list of strings such as '["a", "b"]', not {text!r:.80}""")


def read_json(text: str) -> Any:
    """Return the value of a JSON text; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def named_adapters(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return (name, folder) of each word of --lora-modules: NAME=FOLDER, or a JSON object; "" is skipped, as in vLLM.

    Raises ValueError for a word of another form.
    """
    found = []
    for word in filter(None, words):
        if "=" in word and "," not in word:  # vLLM reads the others as JSON
            pair: list[Any] = word.split("=", 1)
        else:
            value = read_json(word)
            pair = [value.get("name"), value.get("path")] if isinstance(value, dict) else []
        if not (pair and all(isinstance(text, str) and text for text in pair)):
            raise ValueError(
                f'--lora-modules takes NAME=FOLDER, or {{"name": "NAME", "path": "FOLDER"}} for a folder with a comma, '
                f"not {word!r:.80}; give both a name and a folder"
            )
        found.append((pair[0], pair[1]))
    return found
