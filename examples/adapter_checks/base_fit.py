"""Check that an adapter fits its base: each tensor has a module of the same shape, and no tensor is missing.

PEFT loads an adapter that fits only in part, with a warning. vLLM copies a narrower adapter into a corner of the
matrices and drops layers that the base lacks. In both cases the answers come from a model that was never trained.
"""

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from model_folders.weight_files import weight_files

from adapter_checks.adapter_config import is_name_list, read_config
from adapter_checks.adapter_folder import AdapterFolder, Shapes, module_suffixes, read_adapter_folder, stored_shapes

EMBEDDING, OUTPUT = "embed_tokens", "lm_head"  # as in PEFT's EMBEDDING_LAYER_NAMES
LISTS = ("target_modules", "exclude_modules", "modules_to_save")  # settings that may list names of modules
REMEDY = "give the base that the adapter was trained on"


def read_adapter_for_base(folder: str | Path, base: str | Path) -> AdapterFolder:
    """Read an adapter folder, compare it with the files of its base, and return it.

    The comparison is skipped if the base is a name on the hub, or a model of text and images, whose tensors have other
    names than its modules. Raises FileNotFoundError or ValueError if the adapter is incomplete or does not fit.
    """
    adapter = read_adapter_folder(folder)
    modules, tied = base_modules(Path(base))
    if modules:
        check_shapes(adapter, modules, str(base))
        check_completeness(adapter, modules, tied, str(base))
        check_tokenizers(adapter, Path(base))
    return adapter


def base_modules(base: Path) -> tuple[Shapes, bool]:
    """Return (module -> shape of its weight, whether the embedding and output matrices are tied).

    A shape is () if the files do not contain it (a quantised base with packed weights).
    """
    config = read_config(base / "config.json") if (base / "config.json").is_file() else {}
    stored: Shapes = {}
    for file in [] if "text_config" in config else weight_files(base):
        stored |= stored_shapes(file)
    modules: Shapes = {name.rpartition(".")[0]: () for name in stored}
    if not config.get("quantization_config"):
        modules |= {name.removesuffix(".weight"): s for name, s in stored.items() if name.endswith(".weight")}
    embedding = next((name for name in modules if name.rpartition(".")[2] == EMBEDDING), None)
    tied = bool(embedding) and OUTPUT not in modules
    if embedding and tied:
        modules[OUTPUT] = modules[embedding]
    return modules, tied


def shape_in_base(module: str, modules: Shapes) -> tuple[int, ...] | None:
    """Return the shape of a module's weight, or None if the base has no such module.

    A checkpoint saved without its language-modelling head names modules without the leading "model.".
    """
    return modules.get(module, modules.get(module.partition(".")[2]))


def update_shape(parts: Shapes) -> tuple[int, int] | None:
    """Return the shape (rows, columns) of the update from a pair of LoRA matrices; None without a pair."""
    if "lora_A" in parts:
        return parts["lora_B"][0], parts["lora_A"][1]
    if "lora_embedding_A" in parts:
        return parts["lora_embedding_A"][1], parts["lora_embedding_B"][0]
    return None


def check_shapes(adapter: AdapterFolder, modules: Shapes, base: str) -> None:
    """Raise ValueError unless each tensor belongs to a module of the base and has its shape."""
    embedding = next((shape for name, shape in modules.items() if name.rpartition(".")[2] == EMBEDDING), ())
    for module, parts in adapter.parts.items():
        if ".experts" in module:  # these modules have other names on disk than in memory, where they are fused
            continue
        shape = shape_in_base(module, modules)
        if shape is None:
            raise ValueError(f"{adapter.path} changes {module}, which {base} does not have; {REMEDY}")
        pair = update_shape(parts)
        if pair == shape[::-1] and adapter.config.get("fan_in_fan_out"):
            pair = shape[0], shape[1]  # a Conv1D, whose weight is (in, out)
        copies = [parts[kind] for kind in ("weight", "base_layer") if kind in parts]
        may_have_more_rows = bool(copies) and embedding[:1] == shape[:1]  # a vocabulary matrix may have additional rows
        for actual in [*copies, *([pair] if pair else [])]:
            fits = actual == shape or (may_have_more_rows and actual[1:] == shape[1:] and actual[0] > shape[0])
            if shape and not fits:
                sizes = [" by ".join(map(str, size)) for size in (actual, shape)]
                raise ValueError(
                    f"{adapter.path} has the shape {sizes[0]} for {module}, but {base} has {sizes[1]}; {REMEDY}"
                )
        delta = parts.get("token_adapter.trainable_tokens_delta")
        if delta and shape and delta[1:] != shape[1:]:
            raise ValueError(
                f"{adapter.path} has rows of length {delta[1]} for {module}, but {base} has {shape[1]}; {REMEDY}"
            )


def check_completeness(adapter: AdapterFolder, modules: Shapes, tied: bool, base: str) -> None:
    """Raise ValueError if a module that adapter_config.json names has no tensors in the adapter."""
    lists = {name: frozenset(value) for name, value in adapter.config.items() if name in LISTS and is_name_list(value)}
    config = adapter.config | lists
    saved = config.get("modules_to_save") or ()
    shared = tied and config.get("ensure_weight_tying")  # the adapter then has no tensors for the output matrix
    present = {name.partition(".")[2]: parts for name, parts in adapter.parts.items()} | adapter.parts
    for module, shape in modules.items():
        if ".experts" in module or (shared and module == OUTPUT):
            continue
        parts = present.get(module, {})
        if matches_name(module, saved):
            is_complete = "weight" in parts
        else:
            is_target = len(shape) in (0, 2) and is_targeted(module, config)
            is_complete = not is_target or update_shape(parts) is not None
        if not is_complete:
            raise ValueError(
                f"{adapter.path} has no tensors for {module} of {base}, which its adapter_config.json names; copy the "
                f"adapter again, or {REMEDY}"
            )


def is_targeted(module: str, config: Mapping[str, Any]) -> bool:
    """Return whether PEFT adapts a module (check_target_module_exists in peft/tuners/tuners_utils.py, 0.21)."""
    targets, layers = config.get("target_modules") or [], config.get("layers_to_transform")
    if matches_name(module, config.get("exclude_modules") or []) or not matches_name(module, targets):
        return False
    if layers in (None, []) or isinstance(targets, str) or module in targets:
        return True
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = next(filter(None, (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module) for pattern in patterns)), None)
    return found is not None and int(found[1]) in (layers if isinstance(layers, list) else [layers])


def matches_name(module: str, names: str | Container[str]) -> bool:
    """Return whether `names` matches a module.

    names: a regular expression for the whole name, or a collection of names and suffixes of names.
    """
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(suffix in names for suffix in module_suffixes(module))


def check_tokenizers(adapter: AdapterFolder, base: Path) -> None:
    """Raise ValueError if a piece of the base's tokenizer has another id, or none, in the adapter's tokenizer.

    There are two exceptions: an adapter that replaces the embedding matrix may have its own vocabulary, and the base
    may have additional tokens after the last id of the adapter's tokenizer.
    """
    replaced = any(name.rpartition(".")[2] == EMBEDDING and "weight" in parts for name, parts in adapter.parts.items())
    tables = None if replaced else different_tables(adapter.path, base)
    if not tables or is_prefix(*tables):
        return
    own, base_ids = tables
    different = sorted((number, piece) for piece, number in base_ids.items() if own.get(piece) != number)
    if different:
        number, piece = different[0]
        raise ValueError(
            f"{adapter.path} has another tokenizer than {base}: {len(different)} pieces differ, {piece!r} has id "
            f"{own.get(piece, 'none')} in the adapter and {number} in the base; {REMEDY}"
        )


def different_tables(adapter: Path, base: Path) -> tuple[dict[str, int], dict[str, int]] | None:
    """Return piece -> id of an adapter's and its base's tokenizer.json; None if one is missing or they are equal."""
    files = adapter / "tokenizer.json", base / "tokenizer.json"
    if not all(file.is_file() for file in files) or files[0].read_bytes() == files[1].read_bytes():
        return None
    own, base_ids = (token_ids(file) for file in files)
    return None if own == base_ids else (own, base_ids)


def is_prefix(pieces: Mapping[str, int], longer: Mapping[str, int]) -> bool:
    """Return whether `longer` has exactly the same pieces up to the highest id of `pieces` (piece -> id)."""
    last = max(pieces.values(), default=-1)
    return pieces == {piece: number for piece, number in longer.items() if number <= last}


def lacks_added_tokens(adapter: Path, base: Path) -> bool:
    """Return whether an adapter's tokenizer.json lacks only the last tokens of the base's tokenizer.json."""
    tables = different_tables(adapter, base)
    return tables is not None and is_prefix(*tables)


def token_ids(file: Path) -> dict[str, int]:
    """Return piece -> id of a tokenizer.json; raises ValueError if it is damaged."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file)).get_vocab()
    except Exception as error:  # tokenizers has no exception class of its own
        raise ValueError(f"{file} is damaged ({' '.join(str(error).split())}); copy it again") from None
