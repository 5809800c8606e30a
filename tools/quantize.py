"""Quantise a checkpoint and measure the loss of quality: folder in, new folder out.

    python tools/quantize.py --model_path merged --output_dir merged-nf4 --method nf4 --eval_path heldout.jsonl
    python tools/quantize.py --model_path merged --output_dir merged-w4a16 --method gptq \\
        --data_path instructions.jsonl --samples 256 --eval_path heldout.jsonl

gptq and awq (4-bit weights), int8 and fp8 (8-bit weights and activations) write the compressed-tensors format, which
vLLM serves; bnb8 and nf4 write bitsandbytes' format, for transformers. gptq, awq and int8 are calibrated on instruction
data, which is rendered with the checkpoint's own chat template. Embedding, norms and lm_head are not quantised. The
libraries need a separate environment (requirements-quantize.txt). The whole model is in memory, one copy at a time.
"""

from command_line.fire_commands import run

from checkpoint_io.small_files import copy_small_files
from checkpoint_io.tensor_files import parse_size
from checkpoint_io.tensors import read_weights
from checkpoint_io.tied_matrices import has_own_output, set_untied
from partial_folders.atomic_outputs import new_folder
from partial_folders.output_paths import folder_path
from quantization.quantization_inputs import (
    check_library,
    check_model,
    check_options,
    needed_bytes,
    read_data,
    write_record,
)
from quantization.quantization_methods import METHODS, choose_group_size, linear_layers, quantise, suppress_output
from quantization.quantized_score import score, score_table


def main(
    model_path: str,
    output_dir: str,
    method: str,
    data_path: str = "",
    eval_path: str = "",
    samples: int = 256,
    eval_samples: int = 200,
    max_length: int = 2048,
    group_size: int = 0,
    dtype: str = "auto",
    max_shard_size: str = "5GB",
    seed: int = 42,
    trust_remote_code: bool = False,
) -> None:
    """Quantise model_path into the new folder output_dir; print size, perplexity and F1 before and after.

    Args:
        model_path: a checkpoint folder that is not quantised.
        output_dir: a new folder.
        method: gptq or awq (4-bit weights), fp8 or int8 (8-bit weights and activations), bnb8 or nf4 (bitsandbytes).
        data_path: calibration data for gptq, awq and int8: JSON or JSONL of instruction rows, or of {"text"}.
        eval_path: held-out rows in the same formats; without this file, the table has only sizes.
        samples: number of calibration rows.
        eval_samples: number of held-out rows to measure on.
        max_length: maximum tokens of a row; longer rows are truncated for calibration and omitted from the measurement.
        group_size: number of weights that share a scale (gptq, awq): 128, 64 or 32; 0: the largest that fits.
        dtype: type of weights that are not quantised: float16, bfloat16, float32, or auto for the checkpoint's own.
        max_shard_size: maximum size of a weight file, such as 5GB.
        seed: for the random selection of rows.
        trust_remote_code: execute the Python code in the folder model_path.
    """
    options = dict(locals())
    counts = {"samples": samples, "eval_samples": eval_samples, "max_length": max_length}
    check_options(method, data_path, group_size, dtype, **counts)
    kind, shard_limit = METHODS[method], parse_size(max_shard_size)
    folder_path(output_dir)
    model = check_model(model_path)
    with suppress_output():
        layers, data = linear_layers(model, trust_remote_code), read_data(model, kind.calibrated, options)
        group = choose_group_size(layers, group_size, model) if kind.grouped else 0
        check_library(kind.package)
        with new_folder(output_dir, needed_bytes(model, layers, kind.bits), inputs=[model]) as folder:
            before = score(model, data.tokenizer, data.held_out, trust_remote_code)
            template = copy_small_files([model], folder)
            loading = {"dtype": dtype, "trust_remote_code": trust_remote_code}
            quantise(model, folder, method, group, data.calibration, shard_limit, **loading)  # replaces config.json
            if has_own_output(read_weights(model)):
                set_untied(folder)
            after = score(folder, data.tokenizer, data.held_out, trust_remote_code)
            write_record(folder, options | {"group_size": group}, model, {"before": before, "after": after})
    heading = f"{output_dir}: {kind.description}" + (f", groups of {group}" if group else "")
    heading += template
    print(heading, *(["; ".join(data.report)] if data.report else []), score_table(before, after), sep="\n")


if __name__ == "__main__":
    run(main)
