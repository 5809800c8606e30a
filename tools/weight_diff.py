"""Diffs between a tuned model and its base, recovery from them, merged adapters, and interpolated models.

    python tools/weight_diff.py make_diff --path_raw base --path_tuned tuned --path_diff diff
    python tools/weight_diff.py recover --path_raw base --path_diff diff --path_tuned recovered
    python tools/weight_diff.py inspect diff
    python tools/weight_diff.py merge --path_zhixi recovered --path_lora adapter --path_sfted merged
    python tools/weight_diff.py interpolate --path_raw base --path_tuned tuned --weight 0.6 --path_interpolated between

An exact diff (the default) restores every bit, and recovery verifies it. An additive diff (--exact=False), the
published kind, is a checkpoint folder with tuned - base, computed and rounded in float32, or in float16 with --is_fp16.
recover detects the kind. Memory use does not depend on the model's size. The same command resumes an interrupted run.
"""

from command_line.fire_commands import run

from collections.abc import Callable

from checkpoint_io.checkpoint_folders import existing_folder
from checkpoint_io.small_files import check_tokenizer
from checkpoint_io.tensor_files import parse_size
from checkpoint_io.tensors import DIFF_FILES, has_weights
from lora_merging import lora_merge
from weight_diffs import diff_folders
from weight_diffs.diff_report import print_report

WITHOUT_EFFECT = {  # options of the published script, and the reason why each is ignored
    "device": "nothing runs on a GPU",
    "check_integrity_naively": "every tensor is verified",
}


def make_diff(
    path_raw: str,
    path_tuned: str,
    path_diff: str,
    is_fp16: bool = False,
    exact: bool = True,
    adapter: str = "",
    low_rank: bool = True,
    max_shard_size: str = "5GB",
) -> None:
    """Write the diff from path_raw to path_tuned into the new folder path_diff.

    Args:
        path_raw: the base's checkpoint folder.
        path_tuned: the tuned model's checkpoint folder.
        path_diff: a new folder.
        is_fp16: for additive diffs: compute and store in float16 instead of float32.
        exact: write a compressed, bit-exact diff; --exact=False writes an additive one.
        adapter: for exact diffs: the LoRA adapter that was merged into path_tuned; its factors are stored. Without it,
            low-rank changes are searched for.
        low_rank: for exact diffs: search for low-rank changes, which takes seconds per matrix that has one.
        max_shard_size: 5GB, 400MB or a number of bytes; a larger tensor gets its own shard.
    """
    options = dict(locals())
    if exact and is_fp16:
        raise ValueError("an exact diff keeps every type; omit --is_fp16, or make an additive diff: --exact=False")
    if adapter and not exact:
        raise ValueError("an additive diff cannot use --adapter; omit --exact=False")
    inputs = diff_folders.open_inputs(options, parse_size(max_shard_size), "tuned")
    if exact:
        print(diff_folders.write_exact(inputs, path_diff, adapter, low_rank))
    else:
        print(diff_folders.write_additive(inputs, path_diff, "F16" if is_fp16 else "F32"))


def recover(
    path_raw: str,
    path_diff: str,
    path_tuned: str,
    is_fp16: bool = False,
    published: str = "",
    max_shard_size: str = "5GB",
) -> None:
    """Recover the tuned model from its base and a diff, into the new folder path_tuned.

    Args:
        path_raw: the base's checkpoint folder.
        path_diff: a diff folder, exact or additive.
        path_tuned: a new folder.
        is_fp16: for additive diffs: compute and store in float16 instead of float32.
        published: for additive diffs: the diff's repository, to verify the base by that diff's sum in published.json.
        max_shard_size: 5GB, 400MB or a number of bytes; a larger tensor gets its own shard.
    """
    options = dict(locals())
    inputs = diff_folders.open_inputs(options, parse_size(max_shard_size), "diff")
    check_tokenizer(inputs.folders["raw"], inputs.folders["diff"])
    if not has_weights(inputs.folders["diff"], DIFF_FILES):
        print(diff_folders.recover_additive(inputs, path_tuned, "F16" if is_fp16 else "F32", published))
        return
    if is_fp16 or published:
        option = "--is_fp16" if is_fp16 else "--published"
        raise ValueError(f"{path_diff} is an exact diff, which fixes every type and hash; omit {option}")
    print(diff_folders.recover_exact(inputs, path_tuned))


def inspect(path_diff: str) -> None:
    """Print which base a diff needs, its size, and how much each layer changed.

    Args:
        path_diff: a diff folder, exact or additive.
    """
    print_report(existing_folder(path_diff, "inspect", "config.json"))


def merge(
    path_zhixi: str,
    path_lora: list[str],
    path_sfted: str,
    is_fp16: bool = False,
    weights: tuple[float, ...] = (),
    max_shard_size: str = "5GB",
) -> None:
    """Write base + LoRA adapters to the new folder path_sfted, with the last adapter's tokenizer and template, if any.

    Args:
        path_zhixi: the checkpoint folder that the adapters were trained on.
        path_lora: the adapter's folder, or several in merging order, separated by commas.
        path_sfted: a new folder.
        is_fp16: write float16 instead of the base's types.
        weights: add weight * (adapter - base) for each adapter: one number for all adapters, or one per adapter.
            By default each adapter changes the result of the previous one.
        max_shard_size: 5GB, 400MB or a number of bytes; a larger tensor gets its own shard.
    """
    options, shard_limit, dtype = dict(locals()), parse_size(max_shard_size), "F16" if is_fp16 else None
    base = existing_folder(path_zhixi, "--path_zhixi", "config.json")
    loras = lora_merge.weighted_adapters(path_lora, weights, "--path_lora")
    print(lora_merge.merge_folders(base, loras, path_sfted, shard_limit, "tools/weight_diff.py merge", options, dtype))


def interpolate(
    path_raw: str, path_tuned: str, path_interpolated: str, weight: float, max_shard_size: str = "5GB"
) -> None:
    """Write (1 - weight) * base + weight * tuned model to the new folder path_interpolated.

    A model between the two forgets less of what the base knows, and often generalises better (Wortsman et al. 2022).

    Args:
        path_raw: the base's checkpoint folder.
        path_tuned: the tuned model's checkpoint folder, whose types, configuration and tokenizer the result has.
        path_interpolated: a new folder.
        weight: weight of the tuned model, between 0 and 1.
        max_shard_size: 5GB, 400MB or a number of bytes; a larger tensor gets its own shard.
    """
    options = dict(locals())
    if not 0 <= weight <= 1:
        raise ValueError(f"--weight {weight} is not between 0 (base) and 1 (tuned model)")
    inputs = diff_folders.open_inputs(options, parse_size(max_shard_size), "tuned")
    print(diff_folders.interpolate_models(inputs, path_interpolated, weight))


if __name__ == "__main__":
    commands: dict[str, Callable[..., None]] = {
        "make_diff": make_diff, "recover": recover, "inspect": inspect, "merge": merge, "interpolate": interpolate,
    }  # fmt: skip
    run(commands, without_effect=WITHOUT_EFFECT)
