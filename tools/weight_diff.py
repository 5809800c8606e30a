"""Diff of a tuned model against its base, recovery from base and diff, and merging of adapters into their base.

    python tools/weight_diff.py make_diff --path_raw base --path_tuned tuned --path_diff diff
    python tools/weight_diff.py recover --path_raw base --path_diff diff --path_tuned recovered
    python tools/weight_diff.py inspect diff
    python tools/weight_diff.py merge --path_zhixi recovered --path_lora adapter --path_sfted merged

An exact diff (the default) gives back every bit, and recovery proves it. An additive diff (--exact=False; the
published kind: a checkpoint folder that holds tuned - raw) is computed in float32, or in float16 with --is_fp16, and
rounds; recover tells the two apart. Everything is streamed: memory does not grow with the model. An interrupted run
goes on where it was when the same command is given again.
"""

from command_line.fire_commands import run

import logging
from pathlib import Path
from typing import NamedTuple

from checkpoint_io import resume_journal
from checkpoint_io.checkpoint_folders import (
    SMALL_FILES,
    carry,
    check_tokenizer,
    existing,
    new_folder,
    set_dtype,
    write_run,
)
from checkpoint_io.seal_check import verify_seal
from checkpoint_io.tensor_files import differing, not_as_written, parse_size, write_shards
from checkpoint_io.tensors import TORCH_NAME, Spec, Tensor, check_complete, read_weights
from lora_merging import lora_merge
from lora_merging.low_rank import Factors
from weight_diffs import additive_diff, diff_writer, exact_diff
from weight_diffs.diff_report import print_report
from weight_diffs.rank_search import Search

SHARD = "5GB"
SCRIPT = "tools/weight_diff.py"
WITHOUT_EFFECT = {  # published options
    "device": "nothing runs on a GPU",
    "check_integrity_naively": "every tensor is checked",
}
logger = logging.getLogger("weight_diff")


class Job(NamedTuple):
    """What a command was told to do."""

    folders: dict[str, Path]  # that are read, under their roles
    target: str
    options: dict[str, object]
    limit: int  # bytes of a shard


def opened(path_raw: str, other: str, option: str, role: str) -> dict[str, Path]:
    """The two folders that a command reads, under their roles; a seal that is there must hold.

    With an exact diff the weights' seals are not looked at: recovery compares the hash of every tensor itself.
    """
    folders = {
        "raw": existing(path_raw, "--path_raw", "config.json"), role: existing(other, option, "config.json"),
    }  # fmt: skip
    for folder in folders.values():
        verify_seal(folder, weights=not exact_diff.is_exact(folders[role]))
    return folders


def make_diff(
    path_raw: str,
    path_tuned: str,
    path_diff: str,
    is_fp16: bool = False,
    exact: bool = True,
    adapter: str = "",
    low_rank: bool = True,
    max_shard_size: str = SHARD,
) -> None:
    """Write the diff that turns path_raw into path_tuned to the new folder path_diff.

    Args:
        path_raw: the base's checkpoint folder.
        path_tuned: the tuned model's checkpoint folder.
        path_diff: a new folder.
        is_fp16: of additive diffs: compute and store in float16 instead of float32.
        exact: bit for bit, compressed; --exact=False writes the published additive kind.
        adapter: of exact diffs: the LoRA adapter whose merging gave path_tuned; its factors are stored then. Without it
            matrices of small rank are searched for.
        low_rank: of exact diffs: search for changes of small rank, which takes seconds for each matrix that has one;
            --low_rank=False does not.
        max_shard_size: 5GB, 400MB or a number of bytes; of exact diffs, what it takes before compression.
    """
    limit = parse_size(max_shard_size)
    if exact and is_fp16:
        raise ValueError("an exact diff keeps every type; leave --is_fp16 out, or make an additive one: --exact=False")
    if adapter and not exact:
        raise ValueError("an additive diff cannot use --adapter; leave --exact=False out")
    folders = opened(path_raw, path_tuned, "--path_tuned", "tuned")
    check_tokenizer(folders["tuned"])
    raw, tuned = (read_weights(folder) for folder in folders.values())
    check_complete(folders["raw"], raw)
    check_complete(folders["tuned"], tuned)
    options = {
        "path_raw": path_raw, "path_tuned": path_tuned, "path_diff": path_diff, "is_fp16": is_fp16, "exact": exact,
        "adapter": adapter, "low_rank": low_rank, "max_shard_size": max_shard_size,
    }  # fmt: skip
    job = Job(folders, path_diff, options, limit)
    print(make_exact(job, raw, tuned) if exact else make_additive(job, raw, tuned))


def make_exact(job: Job, raw: dict[str, Tensor], tuned: dict[str, Tensor]) -> str:
    """Write an exact diff; returns a line that says how large it is."""
    adapter = job.options["adapter"]
    lora = lora_merge.read_adapter(existing(adapter, "--adapter")) if adapter else None
    for name, tensor in tuned.items():
        elements = tensor.elements - exact_diff.from_base(tensor, exact_diff.counterpart(name, raw))
        if elements:
            logger.warning("%s: %d of %d elements stored whole", name, elements, tensor.elements)

    def known(tensor: Tensor) -> Factors | None:
        update = lora.updates.get(tensor.name) if lora else None
        fits = update is not None and tensor.name in raw and update.shape() == tensor.shape == raw[tensor.name].shape
        return lora_merge.factors(update, raw[tensor.name]) if update is not None and fits else None

    run = resume_journal.identity(SCRIPT, job.options, [*job.folders.values(), *([lora.folder] if lora else [])])
    search = Search() if job.options["low_rank"] else None
    with new_folder(job.target, 0, run) as folder:  # how far it compresses is known only afterwards
        carry(job.folders["tuned"], folder, SMALL_FILES)
        ranked = diff_writer.write(folder, tuned, raw, known, job.limit, search)
        write_run(folder, f"{SCRIPT} make_diff", job.options, job.folders)
        size = sum(file.stat().st_size for file in folder.glob("diff*.safetensors"))
    share = size / sum(tensor.nbytes for tensor in tuned.values())
    note = f", {ranked} matrices as a change of small rank" if ranked else ""
    return f"{job.target}: exact diff, {size / 1e6:.2f} MB, {share:.1%} of the tuned weights{note}"


def make_additive(job: Job, raw: dict[str, Tensor], tuned: dict[str, Tensor]) -> str:
    """Write an additive diff; returns a line that says how large it is and what it cannot give back."""
    dtype = "F16" if job.options["is_fp16"] else "F32"
    tuned = additive_diff.pair(tuned, raw, job.folders["raw"])
    size = sum(tensor.elements for tensor in tuned.values()) * (2 if dtype == "F16" else 4)
    with new_folder(job.target, size) as folder:
        carry(job.folders["tuned"], folder, SMALL_FILES)
        set_dtype(folder, TORCH_NAME[dtype])
        changed = additive_diff.write(folder, tuned, raw, dtype, job.limit)
        write_run(folder, f"{SCRIPT} make_diff", job.options, job.folders)
    share = size / sum(tensor.nbytes for tensor in tuned.values())
    return (
        f"{job.target}: additive diff, {size / 1e6:.2f} MB, {share:.1%} of the tuned weights; "
        f"{changed:.2%} of the weights will come back changed in their last bits"
    )


def recover(
    path_raw: str,
    path_diff: str,
    path_tuned: str,
    is_fp16: bool = False,
    published: str = "",
    max_shard_size: str = SHARD,
) -> None:
    """Write the tuned model to the new folder path_tuned from its base and a diff.

    Args:
        path_raw: the base's checkpoint folder.
        path_diff: a diff folder, exact or additive.
        path_tuned: a new folder.
        is_fp16: of additive diffs: compute and store in float16 instead of float32.
        published: of additive diffs: the repository it came from, when its sum was published (published_diffs.json).
        max_shard_size: 5GB, 400MB or a number of bytes; a larger tensor gets a shard of its own.
    """
    limit = parse_size(max_shard_size)
    folders = opened(path_raw, path_diff, "--path_diff", "diff")
    check_tokenizer(folders["diff"], folders["raw"])
    options = {
        "path_raw": path_raw, "path_diff": path_diff, "path_tuned": path_tuned, "is_fp16": is_fp16,
        "published": published, "max_shard_size": max_shard_size,
    }  # fmt: skip
    raw = read_weights(folders["raw"])
    if exact_diff.is_exact(folders["diff"]):
        if is_fp16:
            raise ValueError(f"{path_diff} is an exact diff, which fixes the type of every tensor; leave --is_fp16 out")
        print(recover_exact(Job(folders, path_tuned, options, limit), raw))
    else:
        print(recover_additive(Job(folders, path_tuned, options, limit), raw))


def recover_exact(job: Job, raw: dict[str, Tensor]) -> str:
    """Check the base, write the tuned weights, and compare every tensor that then lies on the disk with its hash."""
    diff = exact_diff.read(job.folders["diff"])
    exact_diff.check_base(diff, raw, job.folders["raw"])
    specs = [Spec(name, entry.dtype, entry.shape) for name, entry in diff.entries.items()]
    hashes = {name: entry.blake3 for name, entry in diff.entries.items()}
    run = resume_journal.identity(SCRIPT, job.options, job.folders.values())
    with new_folder(job.target, sum(spec.nbytes for spec in specs), run) as folder:
        carry_small(job.folders, folder)
        write_shards(folder, specs, lambda spec: exact_diff.decode(diff, spec.name, raw), job.limit, expected=hashes)
        for tensor in differing(folder, hashes):
            exact_diff.check_payload(diff, tensor.name, raw)
            raise not_as_written(tensor)
        write_run(folder, f"{SCRIPT} recover", job.options, job.folders)
    return f"{job.target}: {len(specs)} tensors, every bit as in the tuned model (weights {diff.tuned[:16]})"


def recover_additive(job: Job, raw: dict[str, Tensor]) -> str:
    """raw + diff, in float32 or float16."""
    dtype, source = "F16" if job.options["is_fp16"] else "F32", job.folders["diff"]
    stored = read_weights(source)
    check_complete(source, stored)
    diff = additive_diff.pair(stored, raw, job.folders["raw"])
    known = additive_diff.check_base(source, stored, raw, job.folders["raw"], str(job.options["published"]))
    needed = sum(tensor.elements for tensor in diff.values()) * (2 if dtype == "F16" else 4)
    run = resume_journal.identity(SCRIPT, job.options, job.folders.values())
    with new_folder(job.target, needed, run) as folder:
        carry_small(job.folders, folder)
        weights = additive_diff.recover(folder, diff, raw, dtype, job.limit)
        same = additive_diff.check_recovered(source, weights, dtype)
        write_run(folder, f"{SCRIPT} recover", job.options, job.folders)
    by = f"base checked by {known}" if known else "nothing tells whether this was its base"
    end = "as its maker got it" if same else "the last bits may differ from the tuned model"
    return f"{job.target}: {len(diff)} tensors in {TORCH_NAME[dtype]} from an additive diff; {by}; {end}"


def carry_small(folders: dict[str, Path], folder: Path) -> None:
    """Configuration, tokenizer and template of the diff, or of the base where the diff has no tokenizer."""
    try:
        check_tokenizer(folders["diff"])
    except FileNotFoundError:
        carry(folders["raw"], folder, SMALL_FILES)
    carry(folders["diff"], folder, SMALL_FILES)


def inspect(path_diff: str, picture: str = "") -> None:
    """Say what a diff needs, how large it is, and how far each layer moved.

    Args:
        path_diff: a diff folder, exact or additive.
        picture: a .png file to draw the change of every matrix of every layer into.
    """
    print_report(existing(path_diff, "inspect", "config.json"), picture)


def merge(
    path_zhixi: str,
    path_lora: list[str],
    path_sfted: str,
    is_fp16: bool = False,
    weights: tuple[float, ...] = (1.0,),
    max_shard_size: str = SHARD,
) -> None:
    """Write base + LoRA adapters to the new folder path_sfted, with the last one's tokenizer and template, if any.

    Args:
        path_zhixi: the checkpoint folder that the adapters were trained on.
        path_lora: the adapter's folder, or several in their order, separated by commas.
        path_sfted: a new folder.
        is_fp16: write float16 instead of the base's types.
        weights: how much of each adapter's change is taken: one number for all, or one for each.
        max_shard_size: 5GB, 400MB or a number of bytes; a larger tensor gets a shard of its own.
    """
    base = existing(path_zhixi, "--path_zhixi", "config.json")
    loras = lora_merge.weighted(path_lora, weights, "--path_lora")
    options: dict[str, object] = {
        "path_zhixi": path_zhixi, "path_lora": path_lora, "path_sfted": path_sfted, "is_fp16": is_fp16,
        "weights": weights, "max_shard_size": max_shard_size,
    }  # fmt: skip
    dtype = "F16" if is_fp16 else None
    limit = parse_size(max_shard_size)
    print(lora_merge.merge_folders(base, loras, path_sfted, limit, f"{SCRIPT} merge", options, dtype))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    run({"make_diff": make_diff, "recover": recover, "inspect": inspect, "merge": merge}, without_effect=WITHOUT_EFFECT)
