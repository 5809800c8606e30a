"""Merge a LoRA adapter into its base and write the result as a Hugging Face folder in shards of a chosen size.

    python tools/export_hf_checkpoint.py --base_model base --lora_model adapter --output_dir merged
    python tools/export_hf_checkpoint.py --base_model B --lora_model L --output_dir D --max_shard_size 10GB

Merges like `tools/weight_diff.py merge`: weights are streamed, merged in float32 and rounded once to the base's types.
The same command resumes an interrupted run.
"""

from command_line.fire_commands import run

from checkpoint_io.checkpoint_folders import existing_folder
from checkpoint_io.tensor_files import parse_size
from lora_merging.lora_merge import merge_folders, weighted_adapters


def main(
    base_model: str,
    lora_model: list[str],
    output_dir: str,
    max_shard_size: str = "5GB",
    weights: tuple[float, ...] = (),
) -> None:
    """Write base + adapter to the new folder output_dir; the adapter's tokenizer and template take precedence.

    Args:
        base_model: the checkpoint folder that the adapter was trained on.
        lora_model: the adapter's folder, or several in merging order, separated by commas.
        output_dir: a new folder.
        max_shard_size: 5GB, 400MB or a number of bytes; a larger tensor gets its own shard.
        weights: add weight * (adapter - base) for each adapter: one number for all adapters, or one per adapter.
            By default each adapter changes the result of the previous one.
    """
    options, shard_limit = dict(locals()), parse_size(max_shard_size)
    base = existing_folder(base_model, "--base_model", "config.json")
    loras = weighted_adapters(lora_model, weights, "--lora_model")
    print(merge_folders(base, loras, output_dir, shard_limit, "tools/export_hf_checkpoint.py", options))


if __name__ == "__main__":
    run(main)
