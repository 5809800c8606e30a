"""Quantise a checkpoint, calibrated on instruction data, and say what it costs: folder in, new folder out.

    python tools/quantize.py --model_path merged --output_dir merged-nf4 --method nf4 --eval_path heldout.jsonl
    python tools/quantize.py --model_path merged --output_dir merged-w4a16 --method gptq \
        --data_path instructions.jsonl --samples 256 --eval_path heldout.jsonl

gptq and awq (4-bit weights), int8 and fp8 (8-bit weights and activations) write the compressed-tensors format, which
vLLM serves; bnb8 and nf4 write bitsandbytes' own, for transformers. Calibration (gptq, awq, int8) reads rows with the
checkpoint's own chat template. Embedding, norms and lm_head stay as they are. Everything runs in an environment of its
own, tools/requirements-quantize.txt; the whole model is held in memory, one copy at a time.
"""

from command_line.fire_commands import run

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from checkpoint_io.checkpoint_folders import (
    PROMPT_FILES,
    TOKENIZER_FILES,
    carry,
    existing,
    new_folder,
    read_json,
    write_json,
    write_run,
)  # fmt: skip
from checkpoint_io.seal_check import verify_seal
from checkpoint_io.tensor_files import parse_size
from checkpoint_io.tensors import read_weights
from quantization.calibration import Example, RowEncoder, encode, fitting, sample_rows
from quantization.quantization_methods import METHODS, Job, choose_group, linear_layers, quantise, quiet, require
from quantization.quantized_score import Scores, score, table, weight_bytes

CARRIED = ("generation_config.json", *TOKENIZER_FILES, *PROMPT_FILES)
DTYPES = ("auto", "float32", "float16", "bfloat16")


def check_options(name: str, data_path: str, group_size: int, dtype: str, **counts: int) -> None:
    """ValueError with the first option that does not fit the method."""
    if name not in METHODS:
        raise ValueError(f"--method {name} is unknown; take one of {', '.join(METHODS)}")
    method = METHODS[name]
    if method.calibrated and not data_path:
        raise ValueError(f"--method {name} is calibrated on instruction rows; give a file of them with --data_path")
    if group_size and not method.grouped:
        raise ValueError(f"--group_size is for gptq and awq; --method {name} has no groups")
    if dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype} is unknown; take one of {', '.join(DTYPES)}")
    for option, count in counts.items():
        if count < 1:
            raise ValueError(f"--{option} takes a number of 1 or more, not {count}")
    require(method.package)


def check_model(path: object) -> Path:
    """The checkpoint folder, complete, unquantised and as it was sealed; see `existing`."""
    model = existing(path, "--model_path", "config.json")
    if read_json(model / "config.json").get("quantization_config"):
        raise ValueError(f"{model} is quantised already; give the model that it was made from")
    if not (model / "tokenizer_config.json").is_file():
        raise FileNotFoundError(f"{model} has no tokenizer_config.json; tools/build_tokenizer.py makes a tokenizer")
    verify_seal(model)
    return model


class Data(NamedTuple):
    """The rows as the model reads them, and what to tell of them."""

    tokenizer: Any
    calibration: list[list[int]]
    held_out: list[Example]
    said: list[str]


def read_data(model: Path, calibrated: bool, options: Mapping[str, Any]) -> Data:
    """The rows that the options name, as ids; raises what reading and rendering them raises."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    encoder, seed = RowEncoder(tokenizer, model), options["seed"]
    context = read_json(model / "config.json").get("max_position_embeddings") or options["max_length"]
    data, limit = Data(tokenizer, [], [], []), min(options["max_length"], context)
    if calibrated:
        rows, seen = sample_rows(options["data_path"], "--data_path", options["samples"], seed)
        data.calibration.extend(one.prompt + one.answer for one in encode(encoder, rows, limit))
        data.said.append(f"calibrated on {len(rows):,} of {seen:,} rows")
    if options["eval_path"]:
        rows, seen = sample_rows(options["eval_path"], "--eval_path", options["eval_samples"], seed)
        data.held_out.extend(fitting(encoder, rows, limit, options["eval_path"]))
        data.said.append(f"measured on {len(data.held_out):,} of {seen:,} held-out rows")
    return data


def needed_bytes(model: Path, layers: dict[str, tuple[int, int]], bits: int) -> int:
    """About what the quantised weights will take at most, the scales included (28% in groups of 32 in float32)."""
    weights = read_weights(model)
    linear = [weights[f"{name}.weight"] for name in layers if f"{name}.weight" in weights]
    saved = sum(tensor.nbytes - tensor.elements * bits * 1.3 / 8 for tensor in linear)
    return int(weight_bytes(model) - max(saved, 0))


def file_hash(path: str) -> str:
    """sha256 of a data file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record(folder: Path, options: dict[str, object], model: Path, figures: dict[str, Scores]) -> None:
    """Write run.json: as every tool does, with the seed, the libraries, the data's hashes and the table as numbers."""
    write_run(folder, "tools/quantize.py", options, {"model": model})
    run = read_json(folder / "run.json")
    for name in ("llmcompressor", "compressed-tensors", "bitsandbytes"):
        try:
            run["versions"][name] = version(name)
        except PackageNotFoundError:
            continue
    read = [options["data_path"]] if METHODS[str(options["method"])].calibrated else []
    data = {str(path): file_hash(str(path)) for path in (*read, options["eval_path"]) if path}
    write_json(folder / "run.json", run | {"seed": options["seed"], "data": data, "scores": figures})


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
    predictions_dir: str = "",
    seed: int = 42,
) -> None:
    """Write model_path, quantised, to the new folder output_dir, and print size, perplexity and F1 before and after.

    Args:
        model_path: a checkpoint folder that is not quantised.
        output_dir: a new folder.
        method: gptq or awq (4-bit weights), fp8 or int8 (8-bit weights and activations), bnb8 or nf4 (bitsandbytes).
        data_path: JSON or JSONL of instruction rows, or of {"text"}; gptq, awq and int8 are calibrated on it.
        eval_path: held-out rows of the same forms; without them the table has sizes only.
        samples: rows to calibrate on.
        eval_samples: held-out rows to measure on.
        max_length: tokens; longer rows are cut in calibration and left out of measuring.
        group_size: weights that share a scale (gptq, awq): 128, 64 or 32; 0 takes the largest that fits the model.
        dtype: type of what is not quantised: float16, bfloat16, float32, or auto for the checkpoint's own.
        max_shard_size: largest file of weights.
        predictions_dir: a new folder for the answers before and after, as finetune/ie_eval.py reads them.
        seed: of the choice of rows.
    """
    options = dict(locals())
    counts = {"samples": samples, "eval_samples": eval_samples, "max_length": max_length}
    check_options(method, data_path, group_size, dtype, **counts)
    kind, limit, model = METHODS[method], parse_size(max_shard_size), check_model(model_path)
    with ExitStack() as stack:
        stack.enter_context(quiet())
        data, layers = read_data(model, kind.calibrated, options), linear_layers(model)
        group = choose_group(layers, group_size, model) if kind.grouped else 0
        folder = stack.enter_context(new_folder(output_dir, needed_bytes(model, layers, kind.bits)))
        answers = stack.enter_context(new_folder(predictions_dir, 0)) if predictions_dir else None
        before = score(model, data.tokenizer, data.held_out, answers and answers / "before.jsonl")
        quantise(Job(model, method, group, data.calibration, dtype, limit), folder)
        carry(model, folder, CARRIED)
        after = score(folder, data.tokenizer, data.held_out, answers and answers / "after.jsonl")
        record(folder, options | {"group_size": group}, model, {"before": before, "after": after})
    heading = f"{output_dir}: {kind.words}" + (f", groups of {group}" if group else "")
    print(heading, *(["; ".join(data.said)] if data.said else []), table(before, after), sep="\n")


if __name__ == "__main__":
    run(main)
