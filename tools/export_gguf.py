"""Write a checkpoint folder as one GGUF file for llama.cpp: weights, tokenizer and chat template.

    python tools/export_gguf.py --model_path merged --output_file merged-q8_0.gguf --type q8_0
    python tools/export_gguf.py --model_path merged --output_file merged-q4_k_m.gguf --type q4_k_m

Types: f32, f16, bf16, q8_0, q4_0, and q4_k_m through llama.cpp's own quantiser. Vectors are stored as f32. If the row
length of a matrix is not a multiple of 32, q8_0 and q4_0 files store it as f16, with a notice. q4_0 stores the output
matrix (the embedding if they are tied) as q8_0; llama.cpp itself uses q6_k for it. Memory use does not depend on the
model's size. Needs the package gguf, and for q4_k_m also llama-cpp-python.
"""

from command_line.fire_commands import run

import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from checkpoint_io.checkpoint_folders import existing_folder
from checkpoint_seals.seal_check import verify_seal
from partial_folders import resume_journal
from partial_folders.atomic_outputs import new_file
from partial_folders.output_paths import file_path

BYTES_PER_TOKEN = 64  # upper bound for the size of the tokenizer in the file
QUANTISED_BYTES = 0.7  # per weight of a q4_k_m file, upper bound


def main(model_path: str, output_file: str, type: str = "q8_0") -> None:
    """Write model_path as the GGUF file output_file.

    Args:
        model_path: a checkpoint folder with its tokenizer; merge an adapter first (tools/weight_diff.py merge).
        output_file: a new file ending in .gguf.
        type: f32, f16, bf16, q8_0, q4_0 or q4_k_m.
    """
    from gguf_files import gguf_writer
    from gguf_files.gguf_model import read_model
    from gguf_files.gguf_vocabulary import read_vocabulary
    from gguf_files.gguf_writer import FILE_TYPES

    kind, target = type.lower(), Path(output_file)
    if kind not in FILE_TYPES:
        raise ValueError(f"--type {type} is unknown; use one of {', '.join(FILE_TYPES)}")
    if target.suffix != ".gguf":
        raise ValueError(f"--output_file {target} does not end in .gguf; programs recognise GGUF files by that suffix")
    file_path(target)
    folder = existing_folder(model_path, "--model_path", "config.json")
    model = read_model(folder)
    vocabulary = read_vocabulary(folder, model.vocabulary_size)
    if kind == "q4_k_m" and find_spec("llama_cpp") is None:
        raise ValueError(gguf_writer.INSTALL_QUANTISER)
    for notice in vocabulary.notices:
        print(f"notice: {notice}", file=sys.stderr)
    written_type = gguf_writer.lossless_type(model) if kind == "q4_k_m" else kind
    tensors = gguf_writer.choose_types(model, written_type)
    needed = sum(tensor.nbytes for tensor in tensors) + BYTES_PER_TOKEN * model.vocabulary_size
    if kind == "q4_k_m":
        needed += int(QUANTISED_BYTES * sum(tensor.elements for tensor in model.tensors.values()))
    verify_seal(folder)
    name = folder.resolve().name
    run_line = resume_journal.run_identity("tools/export_gguf.py", {"type": kind}, [folder])
    with new_file(target, needed, run_line) as file:
        unquantised = file.with_name(f"unquantised-{written_type}.gguf") if kind == "q4_k_m" else file
        head = gguf_writer.gguf_header(
            file.with_name("head"), name, model, vocabulary, tensors, FILE_TYPES[written_type]
        )
        gguf_writer.write_gguf(unquantised, head, model.rope_factors, tensors, name)
        counts = Counter(tensor.kind for tensor in tensors)
        if kind == "q4_k_m":
            counts = gguf_writer.quantise_q4_k_m(unquantised, file)
    kinds = ", ".join(f"{count} {dtype.lower()}" for dtype, count in counts.most_common())
    print(
        f"{target}: {target.stat().st_size / 1e6:,.2f} MB, {counts.total()} tensors ({kinds}), "
        f"{len(vocabulary.tokens):,} tokens"
    )


if __name__ == "__main__":
    run(main)
