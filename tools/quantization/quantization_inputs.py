"""Check the options and the model of a quantisation, turn data rows into token ids, and write run.json.

Rows of {"instruction", "input", "output"} or {"messages"} are rendered with the checkpoint's own chat template and get
the same ids as in tuning and serving (chat_prompts). Rows of {"text"} need no template.
"""

import random
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from chat_prompts.prompt_encoding import PromptEncoder
from chat_prompts.template_files import folder_template
from checkpoint_io.checkpoint_folders import existing_folder, read_json, write_json, write_run_record
from checkpoint_io.small_files import check_tokenizer
from checkpoint_io.tensors import check_complete, read_weights
from checkpoint_seals.seal_check import hash_file, verify_seal
from exact_tokenizers.tokenizer_folders import exact_tokenizer_folder
from json_rows.instruction_rows import InstructionRow, is_plain_text, iterate_instructions, messages_of
from model_folders.own_code import from_folder

from quantization.quantization_methods import ENVIRONMENT, METHODS

DTYPES = ("auto", "float32", "float16", "bfloat16")


def check_options(name: str, data_path: str, group_size: int, dtype: str, **counts: int) -> None:
    """Raise ValueError for an option that is invalid or does not apply to the method. counts: must be 1 or more."""
    if name not in METHODS:
        raise ValueError(f"--method {name} is unknown; use one of {', '.join(METHODS)}")
    method = METHODS[name]
    if method.calibrated and not data_path:
        raise ValueError(f"--method {name} needs instruction rows for calibration; give a file with --data_path")
    if group_size and not method.grouped:
        raise ValueError(f"--group_size is for gptq and awq; --method {name} has no groups")
    if dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype} is unknown; use one of {', '.join(DTYPES)}")
    for option, count in counts.items():
        if count < 1:
            raise ValueError(f"--{option} takes a number of 1 or more, not {count}")


def check_library(package: str) -> None:
    """Raise ValueError, which names the installation command, if a method's library is missing."""
    if find_spec(package) is None:
        raise ValueError(f"{package} is not installed in this environment; create another environment: {ENVIRONMENT}")


def check_model(path: object) -> Path:
    """Return the checkpoint folder; ValueError or FileNotFoundError if it is incomplete, quantised or not as sealed."""
    model = existing_folder(path, "--model_path", "config.json")
    if read_json(model / "config.json").get("quantization_config"):
        raise ValueError(f"{model} is already quantised; give the original model")
    if not (model / "tokenizer_config.json").is_file():
        raise FileNotFoundError(
            f"{model} has no tokenizer_config.json; copy the model's own file there, or build a tokenizer from "
            "its tokenizer.model: tools/build_tokenizer.py"
        )
    check_complete(model, read_weights(model))
    check_tokenizer(model)
    verify_seal(model)
    return model


class CalibrationExample(NamedTuple):
    """A row as token ids."""

    prompt: list[int]
    answer: list[int]  # with its end token, except for plain text
    expected: str | None  # the answer's text; None for plain text, whose prompt is only BOS


def sample_rows(path: str | Path, count: int, seed: int) -> tuple[list[InstructionRow], int]:
    """Return a random sample of at most `count` rows in file order, and the number of rows in the file.

    Raises FileNotFoundError, or ValueError that names file and line.
    """
    rows = list(iterate_instructions(path, plain_text=True))
    chosen = random.Random(seed).sample(range(len(rows)), min(count, len(rows)))
    return [rows[index] for index in sorted(chosen)], len(rows)


def encode_row(encoder: PromptEncoder, row: InstructionRow, folder: Path) -> CalibrationExample:
    """Return a row as token ids; ValueError if the folder's template is missing or changes questions or answers."""
    if is_plain_text(row):
        return CalibrationExample(encoder.plain_text_ids(""), encoder.text_ids(row["text"]), None)
    if not encoder.template:
        raise ValueError(
            f"{folder} has no chat_template.jinja to render instructions with; add one "
            '(tools/set_template.py), or give rows of {"text"}'
        )
    messages = messages_of(row)
    try:
        [turn] = encoder.last_turns([messages])
    except ValueError as error:
        raise ValueError(f"{folder}: {error}; choose another template with tools/set_template.py") from None
    return CalibrationExample(turn.prompt, turn.answer + turn.end, messages[-1]["content"])


def truncate_examples(examples: Iterable[CalibrationExample], limit: int) -> list[list[int]]:
    """Return the first `limit` ids of each example, prompt and answer joined."""
    return [(example.prompt + example.answer)[:limit] for example in examples]


def without_long_examples(examples: Iterable[CalibrationExample], limit: int, path: object) -> list[CalibrationExample]:
    """Return the examples that have an answer and at most `limit` tokens; ValueError if there are none."""
    kept = [example for example in examples if example.answer and len(example.prompt + example.answer) <= limit]
    if not kept:
        raise ValueError(
            f"every row of {path} is empty or longer than {limit} tokens; give other rows or raise --max_length"
        )
    return kept


class QuantizationData(NamedTuple):
    """Calibration rows and held-out rows as token ids, and lines for the report."""

    tokenizer: Any
    calibration: list[list[int]]
    held_out: list[CalibrationExample]
    report: list[str]


def read_data(model: Path, calibrated: bool, options: Mapping[str, Any]) -> QuantizationData:
    """Read and encode the rows that the options name; ValueError or FileNotFoundError names file and line."""
    from transformers import AutoTokenizer

    trust, seed = options["trust_remote_code"], options["seed"]
    tokenizer = from_folder(AutoTokenizer, exact_tokenizer_folder(model, trust), trust)
    encoder = PromptEncoder(tokenizer, folder_template(model))
    context = read_json(model / "config.json").get("max_position_embeddings") or options["max_length"]
    data, limit = QuantizationData(tokenizer, [], [], []), min(options["max_length"], context)
    if calibrated:
        rows, seen = sample_rows(options["data_path"], options["samples"], seed)
        data.calibration.extend(truncate_examples((encode_row(encoder, row, model) for row in rows), limit))
        data.report.append(f"calibrated on {len(rows):,} of {seen:,} rows")
    if options["eval_path"]:
        rows, seen = sample_rows(options["eval_path"], options["eval_samples"], seed)
        examples = (encode_row(encoder, row, model) for row in rows)
        data.held_out.extend(without_long_examples(examples, limit, options["eval_path"]))
        data.report.append(f"measured on {len(data.held_out):,} of {seen:,} held-out rows")
    return data


def weight_bytes(folder: Path) -> int:
    """Return the bytes of a folder's weight files."""
    return sum(file.stat().st_size for file in {tensor.file for tensor in read_weights(folder).values()})


def needed_bytes(model: Path, layers: dict[str, tuple[int, int]], bits: int) -> int:
    """Return an upper bound for the bytes of the quantised model; scales take up to 28 % (float32, groups of 32)."""
    weights = read_weights(model)
    linear = [weights[f"{name}.weight"] for name in layers if f"{name}.weight" in weights]
    saved = sum(tensor.nbytes - tensor.elements * bits * 1.3 / 8 for tensor in linear)
    return int(weight_bytes(model) - max(saved, 0))


def write_record(folder: Path, options: dict[str, object], model: Path, figures: Mapping[str, object]) -> None:
    """Write run.json with seed, library versions, hashes of the data files, and the scores."""
    write_run_record(folder, "tools/quantize.py", options, {"model": model})
    run = read_json(folder / "run.json")
    for name in ("llmcompressor", "compressed-tensors", "bitsandbytes"):
        try:
            run["versions"][name] = version(name)
        except PackageNotFoundError:
            continue
    read = [options["data_path"]] if METHODS[str(options["method"])].calibrated else []
    data = {str(path): hash_file(Path(str(path)), "sha256") for path in (*read, options["eval_path"]) if path}
    write_json(folder / "run.json", run | {"seed": options["seed"], "data": data, "scores": figures})
