"""Convert a GGUF file of llama.cpp to a checkpoint folder: weights, tokenizer, chat template, generation settings.

    python tools/import_gguf.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --output checkpoints/smollm2
    python tools/import_gguf.py --gguf model-q8_0.gguf --output checkpoints/model --dtype float32    # no rounding

Supports the architectures llama (LLaMA, Mistral), qwen2 and qwen3, and the types F32, F16, BF16, Q4_0, Q4_1, Q5_0,
Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL and IQ4_XS. Quantised weights become floats again, without the precision that
quantisation lost. Tensors are streamed, so only a few MB are held in memory. The new folder is sealed, with the file as
its parent. Needs the package gguf.
"""

from command_line.fire_commands import run

from pathlib import Path

from checkpoint_io.checkpoint_folders import write_run_record
from checkpoint_io.tensor_files import parse_size
from partial_folders import resume_journal
from partial_folders.atomic_outputs import new_folder
from partial_folders.output_paths import folder_path

SCRIPT = "tools/import_gguf.py"


def main(gguf: str, output: str, dtype: str = "", max_shard_size: str = "5GB") -> None:
    """Convert a GGUF file to a new checkpoint folder.

    Args:
        gguf: the GGUF file; merge the files of a split model first (llama-gguf-split --merge).
        output: the new checkpoint folder.
        dtype: bfloat16, float16 or float32; by default the type of the file's matrices, or bfloat16 if they are
            quantised or have several types.
        max_shard_size: 5GB, 400MB or a number of bytes; a larger tensor gets its own shard.
    """
    from gguf_files.gguf_header import read_gguf
    from gguf_files.imported_folder import chosen_dtype, write_imported
    from gguf_files.imported_model import read_imported_model
    from gguf_files.imported_tokenizer import read_imported_tokenizer

    shard_limit, path = parse_size(max_shard_size), Path(gguf)
    folder_path(output, [])
    file = read_gguf(path)
    model = read_imported_model(file, chosen_dtype(file, dtype))
    tokenizer = read_imported_tokenizer(file, model.config["vocab_size"])
    options = {
        "gguf": gguf, "output": output, "dtype": model.config["torch_dtype"], "max_shard_size": max_shard_size,
    }  # fmt: skip
    run_line = resume_journal.run_identity(SCRIPT, options, [path])
    needed = sum(tensor.nbytes for tensor in model.tensors)
    with new_folder(output, needed, run_line) as folder:
        write_run_record(folder, SCRIPT, options, {})
        summary = write_imported(file, model, tokenizer, folder, shard_limit)
    print(f"{output}: {summary}")


if __name__ == "__main__":
    run(main)
