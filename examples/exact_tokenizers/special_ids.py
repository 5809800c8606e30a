"""BOS and EOS ids of old configurations.

The first conversions of LLaMA (before transformers 4.28, tokenizer class LLaMATokenizer) have bos_token_id 0 and
eos_token_id 1 in config.json and generation_config.json. LLaMA's tokenizer has <unk> 0, <s> 1 and </s> 2. With the old
ids, generation stops at BOS instead of EOS, and tuned models are saved with the wrong ids.
"""

import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

OLD_IDS = {"bos_token_id": 0, "eos_token_id": 1}


def has_old_ids(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration has the ids of the first conversions."""
    return all(config.get(key) == value for key, value in OLD_IDS.items())


def corrected_ids(config: Mapping[str, Any], bos: int | None, eos: int | None) -> dict[str, int | None]:
    """Return the corrected entries of a configuration with the old ids; {} if nothing needs correction.

    bos, eos: the tokenizer's ids. A negative pad_token_id, which is not an id, becomes None.
    """
    if not has_old_ids(config) or bos is None or eos is None or (bos, eos) == tuple(OLD_IDS.values()):
        return {}
    pad = config.get("pad_token_id")
    return {"bos_token_id": bos, "eos_token_id": eos} | ({"pad_token_id": None} if pad is not None and pad < 0 else {})


def correct_model_ids(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Replace the old ids in the configurations of a loaded model by the tokenizer's ids, and print a notice.

    folder: the checkpoint, for messages. Raises ValueError if a BOS, EOS or padding id is not an integer; for EOS,
    a list of integers is also valid.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for config in (model.config, model.generation_config):
        for key in (*OLD_IDS, "pad_token_id"):
            value = getattr(config, key, None)
            ids = value if isinstance(value, list) and key == "eos_token_id" else [value]
            if value is not None and not all(type(each) is int for each in ids):
                files = "config.json and generation_config.json"
                raise ValueError(f"{folder} has {key} {value!r:.60}, which is not a token id; correct its {files}")
        if corrected := corrected_ids(config.to_dict(), bos, eos):
            for key, value in corrected.items():
                setattr(config, key, value)
            if config is model.config:
                print_notice(str(folder), bos, eos)


@cache
def print_notice(folder: str | Path, bos: int | None, eos: int | None) -> None:
    """Print, only on the first rank, that a folder's ids are replaced; once for each folder and pair of ids."""
    if os.environ.get("RANK", "0") == "0":
        ids = "bos_token_id 0 and eos_token_id 1, as old conversions have"
        print(f"notice: {folder} has {ids}; the tokenizer's {bos} and {eos} are used", file=sys.stderr)
