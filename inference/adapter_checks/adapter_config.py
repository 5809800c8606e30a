"""Read adapter_config.json and check the settings that affect the result of an adapter."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_config(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises ValueError, which names the file, if it is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged (not a JSON object); copy it again")
    return content


def check_settings(config: dict[str, Any], file: Path) -> None:
    """Raise ValueError for the first LoRA setting that is missing, invalid or not supported."""
    if config.get("alora_invocation_tokens") is not None:
        raise ValueError(f"{file} has alora_invocation_tokens, but activated LoRA is not supported; use a LoRA adapter")
    for name, (is_valid, wanted) in SETTINGS.items():
        value = config.get(name)
        if value is None and name not in REQUIRED:
            continue
        if not is_valid(value):
            found = f"no {name}" if value is None else f"{name}={value!r:.80}"
            raise ValueError(f"{file} has {found}, but needs {wanted}; copy the adapter again")


def is_rank(value: object) -> bool:
    return type(value) is int and value > 0


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_boolean(value: object) -> bool:
    return isinstance(value, bool)


def is_name_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_pattern(value: object) -> bool:
    """Return whether a value is a valid regular expression."""
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


def is_target(value: object) -> bool:
    return is_name_list(value) or is_pattern(value)


def is_layers(value: object) -> bool:
    return all(type(layer) is int for layer in (value if isinstance(value, list) else [value]))


def is_table(value: object, is_entry: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(is_pattern(name) and is_entry(entry) for name, entry in value.items())


NAMES = "a list of names or a regular expression"
BY_MODULE = "with names or regular expressions of modules as keys"
REQUIRED = ("r", "lora_alpha")
SETTINGS: dict[str, tuple[Callable[[object], bool], str]] = {
    "r": (is_rank, "a positive integer"),
    "lora_alpha": (is_number, "a number"),
    "rank_pattern": (lambda value: is_table(value, is_rank), f"an object of positive integers {BY_MODULE}"),
    "alpha_pattern": (lambda value: is_table(value, is_number), f"an object of numbers {BY_MODULE}"),
    "target_modules": (is_target, NAMES),
    "exclude_modules": (is_target, NAMES),
    "modules_to_save": (is_name_list, "a list of names"),
    "layers_to_transform": (is_layers, "a layer number or a list of layer numbers"),
    "layers_pattern": (is_target, NAMES),
    "use_dora": (is_boolean, "true or false"),
    "use_rslora": (is_boolean, "true or false"),
    "ensure_weight_tying": (is_boolean, "true or false"),
}
