"""Compare a copy of a published model, or the model recovered from a published diff, with the published MD5 lists.

The lists for recovered models contain the MD5 of the .bin files that the published recovery script wrote. Other formats
store the same weights in other bytes, so the .bin files are rebuilt from the tensors and hashed, without writing them.
The script (tools/weight_diff.py of github.com/zjunlp/KnowLM, July 2023) used transformers 4.28, whose LLaMA determines
the order of the tensors and whose `shard_checkpoint` determines the files, and PyTorch before 2.1 (torch_archives.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoint_io.checkpoint_folders import read_json
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.published_models import has_config, published_repository
from checkpoint_io.published_sums import FREQUENCIES, find_by_sum, is_published_sum, sum_phrase, sum_weights
from checkpoint_io.tensor_files import parse_size
from checkpoint_io.tensors import TORCH_NAME, Tensor, progress, read_weights
from hub_download.model_registry import REGISTRY, entry_of, registry

from checkpoint_seals.seal_check import hash_files
from checkpoint_seals.torch_archives import archive_md5

LISTS = ("md5", "recovered_md5")  # keys of MD5 lists in published.json
LAYER = (
    "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.o_proj.weight",
    f"self_attn.{FREQUENCIES}", "mlp.gate_proj.weight", "mlp.down_proj.weight", "mlp.up_proj.weight",
    "input_layernorm.weight", "post_attention_layernorm.weight",
)  # fmt: skip


def verify_published(folder: Path, published: str, identify: bool) -> str:
    """Compare a folder with the MD5 lists of a published model, or else with its sum; return a report of one line.

    Returns "" if the folder is not recognised. published: repository of the model, or of the diff that it was recovered
    from; "" to detect it. identify: if the files do not identify the repository, compare the sum of the weights. Raises
    ValueError if the weights differ, or if `published` has no MD5 list.
    """
    lists = {name: entry for name, entry in registry()["repositories"].items() if entry.keys() & set(LISTS)}
    if published and not entry_of(published).keys() & set(LISTS):
        raise ValueError(f"{REGISTRY.name} has no MD5 list of {published}; it has lists of {', '.join(lists)}")
    name = published or published_repository(folder, "md5") or published_repository(folder, "recovered_md5")
    entry = entry_of(name)
    candidates = [entry[key] for key in LISTS if key in entry]
    if stored := [table for table in candidates if all((folder / file).is_file() for file in table)]:
        return compare_stored(folder, name, stored)
    if not name and identify:
        name = identify_by_sum(folder, lists.values())
        entry = entry_of(name)
    return compare_recovered(folder, name, entry) if "recovered_md5" in entry else ""


def identify_by_sum(folder: Path, candidates: Iterable[Mapping[str, Any]]) -> str:
    """Return the diff that a folder was recovered from; "" if its config.json does not fit any candidate.

    Raises ValueError if the config.json fits, but the sum of the weights is not a published one.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if not any({"recovered_md5", "config"} <= entry.keys() and has_config(entry, config) for entry in candidates):
        return ""
    total = weights_sum(read_weights(folder), config)
    if name := find_by_sum(total, config):
        return name
    raise ValueError(
        f"{folder} has no seal and matches no published model: the weights add up to {sum_phrase(total, config)}; if "
        f"the folder is intact, seal it: python tools/checkpoint.py seal {folder}"
    )


def compare_stored(folder: Path, name: str, tables: Sequence[Mapping[str, str]]) -> str:
    """Compare the files of a folder with the most similar of several MD5 lists; return the report.

    Raises ValueError for the first file that differs.
    """
    files = {file: folder / file for file in tables[0]}
    found = dict(hash_files(files, "md5", f"verifying {folder.name}"))
    table = max(tables, key=lambda hashes: sum(found[file] == value for file, value in hashes.items()))
    for file, value in table.items():
        if found[file] != value:
            raise ValueError(
                f"{folder / file} has MD5 {found[file]}, {name} was published with {value}; download it again"
            )
    return f"{folder}: all {len(table)} files with the MD5 published for {name}"


def compare_recovered(folder: Path, name: str, entry: Mapping[str, Any]) -> str:
    """Rebuild the published .bin files from a folder's tensors and compare their MD5, else compare the sum of weights.

    Returns the report; if only the sum is as published, it says why the MD5 cannot be compared. Raises ValueError for
    another config.json, and for weights that differ.
    """
    weights, config, table = read_weights(folder), read_json(folder / "config.json"), entry["recovered_md5"]
    if not has_config(entry, config):
        raise ValueError(f"{folder} is not the model recovered with {name}: its config.json has other sizes")
    (dtype, expected), *_ = entry["sum"].items()
    reason = layout_difference(weights, config, dtype)
    if not reason:
        limit = parse_size(entry["recovered_shard_size"])
        variants = [split(tensors, limit) for tensors in published_tensor_lists(weights, config)]
        wrong = different_files(list(zip(*variants, strict=True)), table, folder.name)
        if not wrong:
            return f"{folder}: all {len(table)} files, rebuilt as .bin, with the MD5 published for {name}"
        if len(wrong) < len(table):
            names = "; ".join(f"{file} ({tensors[0].name} to {tensors[-1].name})" for file, tensors in wrong.items())
            raise ValueError(f"{folder} differs from the model recovered with {name} in {names}; recover it again")
        reason = "no rebuilt file has its published MD5, which also depends on the versions of PyTorch and of the base"
    total = weights_sum(weights, config)
    if not is_published_sum(total, expected, dtype):
        raise ValueError(
            f"{folder} is not the model recovered with {name}: its weights add up to {total:.4f}, the published ones "
            f"to {expected:.4f}; recover it again from the right base"
        )
    found = f"the weights add up to {total:.4f}, published for {name}: {expected:.4f}"
    return f"{folder}: {found}; the MD5 cannot be compared: {reason}"


def layout_difference(weights: Mapping[str, Tensor], config: Mapping[str, Any], dtype: str) -> str:
    """Return why the published files cannot be rebuilt from these weights: a name or a type; "" if they can."""
    names = {name for name in ordered_names(config) if not name.endswith(FREQUENCIES)}
    for name in sorted(names ^ {name for name in weights if not name.endswith(FREQUENCIES)}):
        return f"tensor {name} is only in the {'published files' if name in names else 'folder'}"
    for name in sorted(names):
        stored = weights[name].dtype
        if TORCH_NAME.get(stored) != dtype:
            return f"tensor {name} is {TORCH_NAME.get(stored, stored)}, the published files have {dtype}"
    return ""


def ordered_names(config: Mapping[str, Any]) -> list[str]:
    """Return the names of LLaMA's tensors in the order of its modules in transformers 4.28."""
    layers = [f"model.layers.{layer}.{part}" for layer in range(config.get("num_hidden_layers", 0)) for part in LAYER]
    return ["model.embed_tokens.weight", *layers, "model.norm.weight", "lm_head.weight"]


def published_tensor_lists(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> list[list[Tensor]]:
    """Return two lists of the published tensors in file order: with float16-rounded and with exact rotary frequencies.

    transformers 4.28 stored the rotary frequencies in float32. If its converter wrote the base, they had been rounded
    to float16 before. Frequencies in the folder are used unchanged.
    """
    import torch

    width = config["hidden_size"] // config["num_attention_heads"]
    exact = 1.0 / 10_000 ** (torch.arange(0, width, 2).float() / width)
    return [
        [
            weights.get(name) or Tensor(name, "F32", (width // 2,), Path(name), values.numpy().view("<u4"))
            for name in ordered_names(config)
        ]
        for values in (exact.half().float(), exact)
    ]


def split(tensors: Sequence[Tensor], limit: int) -> list[list[Tensor]]:
    """Return the tensors of each file of at most `limit` bytes (`shard_checkpoint` of transformers 4.28)."""
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def different_files(
    variants: Sequence[Sequence[Sequence[Tensor]]], table: Mapping[str, str], label: str
) -> dict[str, Sequence[Tensor]]:
    """Return {file: tensors} for the files whose published MD5 no variant reproduces.

    variants: for each file of `table`, in the same order, alternative lists of its tensors.
    """

    def is_equal(file: str) -> bool:
        return any(archive_md5(Path(file).stem, tensors) == table[file] for tensors in shards[file])

    shards, wrong = dict(zip(table, variants, strict=True)), dict[str, Sequence[Tensor]]()
    with progress(sum(tensor.nbytes for each in shards.values() for tensor in each[0]), f"verifying {label}") as bar:
        for file, equal in zip(shards, in_order(is_equal, shards), strict=True):
            wrong |= {} if equal else {file: shards[file][0]}
            bar.update(sum(tensor.nbytes for tensor in shards[file][0]))
    return wrong


def weights_sum(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> float:
    """Return the sum of a whole model's weights, with the rotary frequencies of all layers."""
    stored = sum(name.endswith(FREQUENCIES) for name in weights)
    return sum_weights(weights.values(), config, config.get("num_hidden_layers", 0) - stored)
