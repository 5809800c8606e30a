"""Read an adapter folder: its configuration and the shapes of its tensors, not their values.

Tensor names and the rules of rank_pattern follow PEFT (peft/utils/save_and_load.py, peft/tuners/lora, 0.21).
"""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_checks.adapter_config import check_settings, read_config

Shapes = dict[str, tuple[int, ...]]

WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PART = re.compile(
    r"(?:base_model\.model\.)?(.+?)\."
    r"(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|token_adapter\.trainable_tokens_delta"
    r"|base_layer|weight|bias)((?:\.weight)?|\.bias)"
)
# PEFT's names in memory: lora_A.default.weight. A state dict saved without PEFT's save_pretrained keeps them.
ADAPTER_NAME_IN_KEY = re.compile(r"\.(lora_\w+|modules_to_save)\.default(?=\.|$)")
MODULE_NAME = re.compile(r"[\w.]+")  # a key of rank_pattern that is a plain name, not a regular expression
PAIRS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))


@dataclass(frozen=True)
class AdapterFolder:
    """A LoRA adapter on disk.

    parts: module of the base -> kind of tensor -> shape. The kinds are lora_A (rank, in) and lora_B (out, rank);
    lora_embedding_A (rank, vocabulary) and lora_embedding_B (hidden, rank); lora_magnitude_vector (DoRA); weight and
    bias (modules_to_save); base_layer (PEFT's copy of an embedding or output matrix);
    token_adapter.trainable_tokens_delta (tokens, hidden).
    """

    path: Path
    config: dict[str, Any]
    parts: dict[str, Shapes]
    has_adapter_name_in_keys: bool  # the file has PEFT's names in memory (ADAPTER_NAME_IN_KEY)


def read_adapter_folder(folder: str | Path) -> AdapterFolder:
    """Read a folder; raises FileNotFoundError or ValueError unless the folder contains a complete LoRA adapter."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; give the folder of an adapter")
    if not (path / "adapter_config.json").is_file():
        if (path / "config.json").is_file():
            raise ValueError(f"{folder} is a full checkpoint, not an adapter; give it as the base model")
        raise FileNotFoundError(f"{folder} has no adapter_config.json; give a folder that finetune/finetune.py wrote")
    config = read_config(path / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder} is an adapter of type {config.get('peft_type')}; only type LORA is supported")
    file = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} has no {WEIGHT_FILES[0]}; copy or train the adapter again")
    check_settings(config, path / "adapter_config.json")
    stored = stored_shapes(file)
    shapes = {saved_name(name): shape for name, shape in stored.items()}
    adapter = AdapterFolder(path, config, group_by_module(shapes, file), shapes.keys() != stored.keys())
    ranks = ModulePatterns(config.get("rank_pattern"))
    for module, parts in adapter.parts.items():
        check_pair(adapter, module, parts, ranks.value(module, config["r"]))
    return adapter


def stored_shapes(file: Path) -> Shapes:
    """Return name -> shape for the tensors of a .safetensors or .bin file; raises ValueError if it is unreadable."""
    try:
        if file.suffix == ".bin":
            import torch

            tensors = torch.load(file, map_location="meta", weights_only=True)
            return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        from safetensors import safe_open

        with safe_open(file, framework="np") as stored:
            return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except Exception as error:  # the libraries raise different classes
        raise ValueError(f"{file} is damaged ({' '.join(str(error).split())}); copy it again") from None


def group_by_module(shapes: Mapping[str, tuple[int, ...]], file: Path) -> dict[str, Shapes]:
    """Return module -> kind -> shape for the tensors of an adapter file, without copies (see `is_copy`).

    Raises ValueError if a tensor does not belong to a LoRA adapter, or if there are no tensors.
    """
    parts: dict[str, Shapes] = {}
    for name, shape in shapes.items():
        if is_copy(name, shapes):
            continue
        match = PART.fullmatch(name)
        if match is None or "lora_" in match[1]:
            raise ValueError(f"{file} contains {name}, which is not a tensor of a LoRA adapter; copy it again")
        kind = match[2] + (".bias" if match[3] == ".bias" else "")
        parts.setdefault(match[1], {})[kind] = shape
    if not parts:
        raise ValueError(f"{file} contains no tensors; copy or train the adapter again")
    return parts


def saved_name(name: str) -> str:
    """Return the name of a tensor as PEFT saves it, without the name of the adapter (see ADAPTER_NAME_IN_KEY).

    A module of modules_to_save is saved under its own name: `lm_head.modules_to_save.default.weight` becomes
    `lm_head.weight`.
    """
    return ADAPTER_NAME_IN_KEY.sub(lambda match: "" if match[1] == "modules_to_save" else f".{match[1]}", name)


def is_copy(name: str, names: Container[str]) -> bool:
    """Return whether a tensor is a copy of a module of modules_to_save, in its trained or its original state.

    PEFT stores such copies beside `<module>.weight` if the vocabulary has grown (save_embedding_layers in
    get_peft_model_state_dict), and does not load them.
    """
    module, _, kind = name.removesuffix(".weight").rpartition(".")
    return kind in ("modules_to_save", "original_module") and f"{module}.weight" in names


def check_pair(adapter: AdapterFolder, module: str, parts: Shapes, rank: int) -> None:
    """Raise ValueError if a LoRA pair is incomplete, has shapes that do not match, or contradicts adapter_config.json.

    rank: the module's rank in adapter_config.json; use_dora is also compared.
    """
    for down, up in PAIRS:
        if down not in parts and up not in parts:
            continue
        if down not in parts or up not in parts:
            raise ValueError(f"{adapter.path} has only one of {down} and {up} for {module}; copy it again")
        if len(parts[down]) != 2 or len(parts[up]) != 2 or parts[down][0] != parts[up][1]:
            raise ValueError(
                f"{adapter.path}: {down} and {up} of {module} have shapes that do not match; copy it again"
            )
        if rank != parts[down][0]:
            raise ValueError(
                f"{adapter.path} has rank {parts[down][0]} for {module}, but its adapter_config.json says {rank}; "
                "copy both files again"
            )
        if bool(adapter.config.get("use_dora")) != ("lora_magnitude_vector" in parts):
            says = "use_dora, which needs one" if adapter.config.get("use_dora") else "no use_dora"
            has = "a" if "lora_magnitude_vector" in parts else "no"
            raise ValueError(
                f"{adapter.path} has {has} lora_magnitude_vector for {module}, but its adapter_config.json says "
                f"{says}; copy both files again"
            )


def module_suffixes(module: str) -> list[str]:
    """Return a module's name and all its suffixes: a.b.c, b.c, c."""
    parts = module.split(".")
    return [".".join(parts[first:]) for first in range(len(parts))]


class ModulePatterns:
    """A rank_pattern or alpha_pattern: finds the first entry that PEFT's get_pattern_key matches with a module.

    The suffixes of the module are looked up among the entries; only regular expressions are tried one by one.
    """

    def __init__(self, patterns: Mapping[str, Any] | None) -> None:
        self.values = list((patterns or {}).values())
        self.positions = {pattern: position for position, pattern in enumerate(patterns or {})}
        self.expressions = [
            (position, re.compile(rf"(.*\.)?({pattern})$"))
            for pattern, position in self.positions.items() if not MODULE_NAME.fullmatch(pattern)
        ]  # fmt: skip

    def value(self, module: str, default: Any) -> Any:
        """Return the entry for a module, else `default`."""
        found = [self.positions[suffix] for suffix in module_suffixes(module) if suffix in self.positions]
        found += [position for position, expression in self.expressions if expression.match(module)]
        return self.values[min(found)] if found else default
