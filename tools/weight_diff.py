"""Diff of a tuned model against its base, recovery from base and diff, and merging of an adapter into its base.

    python tools/weight_diff.py make_diff --path_raw base --path_tuned tuned --path_diff diff
    python tools/weight_diff.py recover --path_raw base --path_diff diff --path_tuned recovered
    python tools/weight_diff.py merge --path_zhixi recovered --path_lora adapter --path_sfted merged

An exact diff (the default) gives back every bit, and recovery proves it. An additive diff (--exact=False; the
published kind: a checkpoint folder that holds tuned - raw) is computed in float32, or in float16 with --is_fp16, and
rounds; recover tells the two apart. Everything is streamed: memory does not grow with the model.
"""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import exact_diff
import fire
import lora_merge
import numpy as np
from folders import SMALL_FILES, carry, existing, flag, new_folder, parse_size, refuse, set_dtype, write_run
from seal_check import verify_seal
from tensors import (
    FLOATS,
    TORCH_NAME,
    Spec,
    Tensor,
    digests,
    fingerprint,
    from_float32,
    read_weights,
    to_float32,
    write_shards,
)  # fmt: skip

SHARD = parse_size("5GB")
SCRIPT = "tools/weight_diff.py"
logger = logging.getLogger("weight_diff")


def combine(first: Tensor, second: Tensor, sign: int, dtype: str) -> Iterator[np.ndarray]:
    """first + sign * second in `dtype` (F16 or F32), both rounded to it before, as bit patterns in chunks.

    Elements that second lacks at the end (rows added to the vocabulary) are first's own.
    """

    def rounded(bits: np.ndarray, source: str) -> np.ndarray:
        values = to_float32(bits, source)
        return values if dtype in (source, "F32") else to_float32(from_float32(values, dtype), dtype)

    shared = min(first.elements, second.elements)
    operation = np.add if sign > 0 else np.subtract
    for ours, theirs in zip(first.chunks(stop=shared), second.chunks(stop=shared), strict=True):
        yield from_float32(operation(rounded(ours, first.dtype), rounded(theirs, second.dtype)), dtype)
    for rest in first.chunks(start=shared):
        yield from_float32(to_float32(rest, first.dtype), dtype)


def pair(tensors: dict[str, Tensor], raw: dict[str, Tensor], path_raw: Path) -> dict[str, Tensor]:
    """Those tensors that can be added to or subtracted from one of raw; ValueError names the first that cannot.

    Rotary frequencies, which checkpoints up to 2023 hold though they follow from the configuration, may be missing.
    """
    pairs = {}
    for name, tensor in tensors.items():
        if name not in raw and name.endswith("rotary_emb.inv_freq"):
            continue
        if name not in raw:
            raise ValueError(f"{path_raw} has no tensor {name}; it is not the base of this model")
        exact_diff.from_base(tensor, raw[name])  # the shapes belong together
        if tensor.elements < raw[name].elements or {tensor.dtype, raw[name].dtype} - set(FLOATS):
            raise ValueError(
                f"tensor {name} is {raw[name].dtype} {list(raw[name].shape)} in {path_raw} and {tensor.dtype} "
                f"{list(tensor.shape)} in {tensor.file}; these cannot be added: make an exact diff"
            )
        pairs[name] = tensor
    return pairs


def write_combined(
    first: dict[str, Tensor], raw: dict[str, Tensor], sign: int, dtype: str, folder: Path, kind: str
) -> None:
    """Write first + sign * raw in `dtype` into folder, whose config.json then names that type."""
    specs = [Spec(tensor.name, dtype, tensor.shape) for tensor in first.values()]
    set_dtype(folder, TORCH_NAME[dtype])
    write_shards(
        folder, specs, lambda spec: combine(first[spec.name], raw[spec.name], sign, dtype), SHARD, {"kind": kind}
    )


def both(path_raw: str, other: str, option: str, role: str) -> dict[str, Path]:
    """The two folders that a command reads, under their roles; a seal that is there must hold."""
    folders = {
        "raw": existing(path_raw, "--path_raw", "config.json"), role: existing(other, option, "config.json"),
    }  # fmt: skip
    for folder in folders.values():
        verify_seal(folder)
    return folders


def make_diff(
    path_raw: str, path_tuned: str, path_diff: str, is_fp16: bool = False, exact: bool = True, **unknown: object
) -> None:
    """Write the diff that turns path_raw into path_tuned to the new folder path_diff.

    Args:
        path_raw: the base's checkpoint folder.
        path_tuned: the tuned model's checkpoint folder.
        path_diff: a new folder.
        is_fp16: of additive diffs: compute and store in float16 instead of float32.
        exact: bit for bit, compressed; --exact=False writes the published additive kind.
        unknown: nothing; options that do not exist are refused.
    """
    refuse(unknown)
    is_fp16, exact = flag(is_fp16, "--is_fp16"), flag(exact, "--exact")
    if exact and is_fp16:
        raise ValueError("an exact diff keeps every type; leave --is_fp16 out, or make an additive one: --exact=False")
    folders = both(path_raw, path_tuned, "--path_tuned", "tuned")
    raw, tuned = (read_weights(folder) for folder in folders.values())
    if exact:
        whole = {name: tensor.elements - exact_diff.from_base(tensor, raw.get(name)) for name, tensor in tuned.items()}
        for name, elements in whole.items():
            if elements:
                logger.warning("%s: %d of %d elements stored whole", name, elements, tuned[name].elements)
        needed = 0  # how far it compresses is known only afterwards; a full disk is cleaned up behind
    else:
        tuned = pair(tuned, raw, folders["raw"])
        needed = sum(tensor.elements for tensor in tuned.values()) * (2 if is_fp16 else 4)
    with new_folder(path_diff, needed) as folder:
        carry(folders["tuned"], folder, SMALL_FILES)
        if exact:
            hashes = {"base": digests(raw, "hashing the base"), "tuned": digests(tuned, "hashing the tuned model")}
            prints = {
                "base": fingerprint(raw.values(), hashes["base"]), "tuned": fingerprint(tuned.values(), hashes["tuned"])
            }  # fmt: skip
            exact_diff.write(folder / exact_diff.DIFF_FILE, tuned, raw, hashes, prints)
        else:
            write_combined(tuned, raw, -1, "F16" if is_fp16 else "F32", folder, "additive-diff")
        options = {"path_raw": path_raw, "path_tuned": path_tuned, "path_diff": path_diff}
        write_run(folder, f"{SCRIPT} make_diff", options | {"is_fp16": is_fp16, "exact": exact}, folders)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    share = size / sum(tensor.nbytes for tensor in tuned.values())
    kind = "exact" if exact else "additive"
    print(f"{path_diff}: {kind} diff, {size / 1e6:.2f} MB, {share:.1%} of the tuned weights")


def recover(path_raw: str, path_diff: str, path_tuned: str, is_fp16: bool = False, **unknown: object) -> None:
    """Write the tuned model to the new folder path_tuned from its base and a diff.

    Args:
        path_raw: the base's checkpoint folder.
        path_diff: a diff folder, exact or additive.
        path_tuned: a new folder.
        is_fp16: of additive diffs: compute and store in float16 instead of float32.
        unknown: nothing; options that do not exist are refused.
    """
    refuse(unknown)
    is_fp16 = flag(is_fp16, "--is_fp16")
    folders = both(path_raw, path_diff, "--path_diff", "diff")
    options = {"path_raw": path_raw, "path_diff": path_diff, "path_tuned": path_tuned, "is_fp16": is_fp16}
    raw = read_weights(folders["raw"])
    if (folders["diff"] / exact_diff.DIFF_FILE).is_file():
        if is_fp16:
            raise ValueError(f"{path_diff} is an exact diff, which fixes the type of every tensor; leave --is_fp16 out")
        recover_exact(raw, folders, path_tuned, options)
    else:
        recover_additive(raw, folders, path_tuned, options)


def recover_exact(
    raw: dict[str, Tensor], folders: dict[str, Path], path_tuned: str, options: dict[str, object]
) -> None:
    """Check the base, then write the tuned weights, each tensor's hash compared with the diff's."""
    diff = exact_diff.read(folders["diff"] / exact_diff.DIFF_FILE)
    exact_diff.check_base(diff, raw, folders["raw"])
    specs = [Spec(name, entry.dtype, entry.shape) for name, entry in diff.entries.items()]
    with new_folder(path_tuned, sum(spec.nbytes for spec in specs)) as folder:
        carry(folders["diff"], folder, SMALL_FILES)
        hashes = write_shards(
            folder, specs, lambda spec: exact_diff.decode(diff, spec.name, raw.get(spec.name)), SHARD,
        )  # fmt: skip
        for name, entry in diff.entries.items():
            if hashes[name] != entry.sha256:
                raise ValueError(f"{diff.path}: tensor {name} came out with another sha256 than recorded; get it again")
        write_run(folder, f"{SCRIPT} recover", options, folders)
    weights = fingerprint(specs, hashes)
    print(f"{path_tuned}: {len(specs)} tensors, every bit as in the tuned model (weights {weights[:16]})")


def recover_additive(
    raw: dict[str, Tensor], folders: dict[str, Path], path_tuned: str, options: dict[str, object]
) -> None:
    """raw + diff, in float32 or float16."""
    dtype = "F16" if options["is_fp16"] else "F32"
    diff = pair(read_weights(folders["diff"]), raw, folders["raw"])
    needed = sum(tensor.elements for tensor in diff.values()) * (2 if dtype == "F16" else 4)
    with new_folder(path_tuned, needed) as folder:
        carry(folders["diff"], folder, SMALL_FILES)
        write_combined(diff, raw, 1, dtype, folder, "full")
        write_run(folder, f"{SCRIPT} recover", options, folders)
    print(
        f"{path_tuned}: {len(diff)} tensors in {TORCH_NAME[dtype]} from an additive diff; "
        "its sums are rounded, so the last bits may differ from the tuned model"
    )


def merge(path_zhixi: str, path_lora: str, path_sfted: str, is_fp16: bool = False, **unknown: object) -> None:
    """Write base + LoRA adapter to the new folder path_sfted; tokenizer and template are the adapter's if it has any.

    Args:
        path_zhixi: the checkpoint folder that the adapter was trained on.
        path_lora: the adapter's folder.
        path_sfted: a new folder.
        is_fp16: write float16 instead of the base's types.
        unknown: nothing; options that do not exist are refused.
    """
    refuse(unknown)
    is_fp16 = flag(is_fp16, "--is_fp16")
    base, lora = (
        existing(path_zhixi, "--path_zhixi", "config.json"),
        existing(path_lora, "--path_lora", "adapter_config.json"),
    )
    options = {"path_zhixi": path_zhixi, "path_lora": path_lora, "path_sfted": path_sfted, "is_fp16": is_fp16}
    dtype = "F16" if is_fp16 else None
    print(lora_merge.merge_folders(base, lora, path_sfted, SHARD, f"{SCRIPT} merge", options, dtype))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        commands = {"make_diff": make_diff, "recover": recover, "merge": merge}
        fire.Fire(commands, [*sys.argv[1:2], "--", "--help"] if "--help" in sys.argv[2:] else None)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
