"""Check the options and the model of a quantisation, read its rows, and write run.json."""

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from chat_prompts.prompt_encoding import PromptEncoder
from checkpoint_io.checkpoint_folders import existing_folder, read_json, write_json, write_run_record
from checkpoint_io.tensors import read_weights
from checkpoint_seals.seal_check import verify_seal

from quantization.calibration import CalibrationExample, encode_row, sample_rows, select_fitting, truncate_examples
from quantization.quantization_methods import METHODS, require_library
from quantization.quantized_score import Scores, weight_bytes

DTYPES = ("auto", "float32", "float16", "bfloat16")


def check_options(name: str, data_path: str, group_size: int, dtype: str, **counts: int) -> None:
    """Raise ValueError for the first option that does not fit the method; counts must be positive."""
    if name not in METHODS:
        raise ValueError(f"--method {name} is unknown; use one of {', '.join(METHODS)}")
    method = METHODS[name]
    if method.calibrated and not data_path:
        raise ValueError(f"--method {name} is calibrated on instruction rows; give a file with --data_path")
    if group_size and not method.grouped:
        raise ValueError(f"--group_size is for gptq and awq; --method {name} has no groups")
    if dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype} is unknown; use one of {', '.join(DTYPES)}")
    for option, count in counts.items():
        if count < 1:
            raise ValueError(f"--{option} takes a number of 1 or more, not {count}")
    require_library(method.package)


def check_model(path: object) -> Path:
    """Return the checkpoint folder; raises if it is incomplete, quantised, or differs from its seal."""
    model = existing_folder(path, "--model_path", "config.json")
    if read_json(model / "config.json").get("quantization_config"):
        raise ValueError(f"{model} is already quantised; give the model that it was made from")
    if not (model / "tokenizer_config.json").is_file():
        raise FileNotFoundError(f"{model} has no tokenizer_config.json; tools/build_tokenizer.py makes a tokenizer")
    verify_seal(model)
    return model


class QuantizationData(NamedTuple):
    """Calibration rows and held-out rows as token ids, and lines for the report."""

    tokenizer: Any
    calibration: list[list[int]]
    held_out: list[CalibrationExample]
    report: list[str]


def read_data(model: Path, calibrated: bool, options: Mapping[str, Any]) -> QuantizationData:
    """Read and encode the rows that the options name; ValueError or FileNotFoundError names file and line."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    prompts, seed = PromptEncoder(tokenizer), options["seed"]
    context = read_json(model / "config.json").get("max_position_embeddings") or options["max_length"]
    data, limit = QuantizationData(tokenizer, [], [], []), min(options["max_length"], context)
    if calibrated:
        rows, seen = sample_rows(options["data_path"], options["samples"], seed)
        data.calibration.extend(truncate_examples((encode_row(prompts, row, model) for row in rows), limit))
        data.report.append(f"calibrated on {len(rows):,} of {seen:,} rows")
    if options["eval_path"]:
        rows, seen = sample_rows(options["eval_path"], options["eval_samples"], seed)
        examples = (encode_row(prompts, row, model) for row in rows)
        data.held_out.extend(select_fitting(examples, limit, options["eval_path"]))
        data.report.append(f"measured on {len(data.held_out):,} of {seen:,} held-out rows")
    return data


def needed_bytes(model: Path, layers: dict[str, tuple[int, int]], bits: int) -> int:
    """Return an upper bound for the bytes of the quantised weights and scales (28 % in float32 groups of 32)."""
    weights = read_weights(model)
    linear = [weights[f"{name}.weight"] for name in layers if f"{name}.weight" in weights]
    saved = sum(tensor.nbytes - tensor.elements * bits * 1.3 / 8 for tensor in linear)
    return int(weight_bytes(model) - max(saved, 0))


def file_hash(path: str) -> str:
    """Return the sha256 of a data file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(folder: Path, options: dict[str, object], model: Path, figures: dict[str, Scores]) -> None:
    """Write run.json with seed, library versions, hashes of the data files, and the scores."""
    write_run_record(folder, "tools/quantize.py", options, {"model": model})
    run = read_json(folder / "run.json")
    for name in ("llmcompressor", "compressed-tensors", "bitsandbytes"):
        try:
            run["versions"][name] = version(name)
        except PackageNotFoundError:
            continue
    read = [options["data_path"]] if METHODS[str(options["method"])].calibrated else []
    data = {str(path): file_hash(str(path)) for path in (*read, options["eval_path"]) if path}
    write_json(folder / "run.json", run | {"seed": options["seed"], "data": data, "scores": figures})
