"""Merge a LoRA adapter into its base and write the result as a Hugging Face folder in shards of a chosen size.

    python tools/export_hf_checkpoint.py --base_model base --lora_model adapter --output_dir merged
    python tools/export_hf_checkpoint.py --base_model B --lora_model L --output_dir D --max_shard_size 10GB

The same merging as `tools/weight_diff.py merge`: in float32, rounded once to the base's types, streamed.
"""

import sys

import fire
from folders import existing, parse_size, refuse
from lora_merge import merge_folders


def main(
    base_model: str, lora_model: str, output_dir: str, max_shard_size: str | int = "5GB", **unknown: object
) -> None:
    """Write base + adapter to the new folder output_dir; tokenizer and template are the adapter's if it has any.

    Args:
        base_model: the checkpoint folder that the adapter was trained on.
        lora_model: the adapter's folder.
        output_dir: a new folder.
        max_shard_size: 5GB, 400MB or a number of bytes; a larger tensor gets a shard of its own.
        unknown: nothing; options that do not exist are refused.
    """
    refuse(unknown)
    limit = parse_size(max_shard_size)
    base, lora = (
        existing(base_model, "--base_model", "config.json"),
        existing(lora_model, "--lora_model", "adapter_config.json"),
    )
    options = {"base_model": base, "lora_model": lora, "output_dir": output_dir, "max_shard_size": max_shard_size}
    print(merge_folders(base, lora, output_dir, limit, "tools/export_hf_checkpoint.py", options))


if __name__ == "__main__":
    try:
        fire.Fire(main, ["--", "--help"] if "--help" in sys.argv else None)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
