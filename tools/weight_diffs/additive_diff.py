"""Additive diffs, the published kind: a checkpoint folder that contains tuned - base in float32 or float16.

Because of rounding, base + (tuned - base) does not always equal tuned. Diffs made here record the fingerprint of the
base in diff.json. Published diffs have no such record; published.json contains the sum of all recovered weights if the
authors published it. Layout: tools/CHECKPOINT.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from checkpoint_io import tensors
from checkpoint_io.bit_patterns import FLOATS, cast, from_float32, to_float32
from checkpoint_io.checkpoint_folders import config_number, read_json, set_dtype
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.published_models import published_repository
from checkpoint_io.published_sums import FREQUENCIES, find_by_sum, is_published_sum, sum_phrase, sum_weights
from checkpoint_io.tensor_files import write_shards
from checkpoint_io.tensors import CHUNK, TORCH_NAME, Spec, Tensor, check_finite, is_buffer, ranges
from hub_download.model_registry import REGISTRY, entry_of, registry
from model_folders.diff_recognition import DIFF_RECORD

from weight_diffs.exact_diff import TIED, find_base_tensor
from weight_diffs.full_models import refuse_full_model

FORMAT = "additive-diff"
SUM_FILE = "checksum_psum.txt"  # in some published diffs
Weights = Mapping[str, Tensor]  # by name


def recorded_base(path_diff: Path) -> list[str]:
    """Return the base's fingerprints in diff.json: of all tensors, and of all tensors but buffers (`is_buffer`).

    Older diffs have only the first. Returns [] without diff.json; raises ValueError if diff.json is damaged.
    """
    file = path_diff / DIFF_RECORD
    if not file.is_file():
        return []
    record = read_json(file)
    found = [record[key] for key in ("base", "base_trained") if key in record]
    if record.get("format") != FORMAT or not found or not all(isinstance(value, str) for value in found):
        raise ValueError(f"{file} is not the record of an additive diff; download the diff again")
    return found


def base_fingerprints(base: Weights, label: str) -> list[str]:
    """Compute the two fingerprints of a base that `recorded_base` returns. label: text of the progress bar."""
    hashes = tensors.tensor_hashes(base.values(), label)
    trained = [tensor for tensor in base.values() if not is_buffer(tensor)]
    return [tensors.fingerprint(values, hashes) for values in (base.values(), trained)]


def with_tied_output(folder: Path, base: Weights) -> Weights:
    """Return a base's tensors, with the embedding also as the output matrix if the base stores it only once."""
    name, embedding = next((output, base.get(source)) for output, source in TIED.items())
    if name in base or embedding is None or not read_json(folder / "config.json").get("tie_word_embeddings"):
        return base
    return {**base, name: replace(embedding, name=name)}


def matching_tensors(weights: Weights, base: Weights, path_base: Path) -> dict[str, Tensor]:
    """Return the weights, except buffers that the base lacks; ValueError if a tensor does not match the base."""
    matching = {}
    for name, tensor in weights.items():
        if name not in base:
            if is_buffer(tensor):
                continue
            raise ValueError(f"{path_base} has no tensor {name}; use the base of this model")
        base_tensor = find_base_tensor(tensor, base)
        if base_tensor is None or tensor.elements < base_tensor.elements or tensor.dtype not in FLOATS:
            raise ValueError(
                f"tensor {name} is {base[name].dtype} {list(base[name].shape)} in {path_base} and {tensor.dtype} "
                f"{list(tensor.shape)} in {tensor.file}; an additive diff is not possible: make an exact one"
            )
        matching[name] = tensor
    return matching


def mean_rows(diff: Weights, base: Weights) -> dict[str, np.ndarray]:
    """Return name -> mean of the base's rows, (columns,) float32, for each matrix that has more rows in the diff.

    The recovery script of github.com/tatsu-lab/stanford_alpaca gives the base such rows (train.py,
    smart_tokenizer_and_embedding_resize) before it adds the diff.
    """
    means = {}
    for name, tensor in diff.items():
        stored = base.get(name)
        if stored is None or tensor.elements == stored.elements:
            continue
        rows, columns = stored.shape
        total = np.zeros(columns)
        for bounds in stored.row_ranges():
            total += to_float32(stored.read(*bounds), stored.dtype).reshape(-1, columns).sum(0, dtype=np.float64)
        means[name] = (total / rows).astype(np.float32)
    return means


def read_rounded(
    tensor: Tensor, bounds: tuple[int, int], dtype: str, added_row: np.ndarray | None = None
) -> np.ndarray:
    """Return a range of elements as float32, rounded to `dtype`.

    Rows beyond the tensor's end are `added_row` (columns,), or 0.
    """
    bits = tensor.read_once(*(min(element, tensor.elements) for element in bounds))
    values = np.zeros(bounds[1] - bounds[0], np.float32)
    values[: bits.size] = to_float32(cast(bits, tensor.dtype, dtype), dtype)
    if added_row is not None:
        rounded = to_float32(from_float32(added_row, dtype), dtype)
        values[bits.size :] = rounded[np.arange(bounds[0] + bits.size, bounds[1]) % added_row.size]
    return values


def write_combined(
    folder: Path,
    weights: Weights,
    base: Weights,
    operation: np.ufunc,
    dtype: str,
    shard_limit: int,
    added_rows: Mapping[str, np.ndarray] | None = None,
) -> dict[str, str]:
    """Write operation(weights, base) in `dtype`, and set the type in config.json; return {name: BLAKE3}.

    operation: np.subtract makes a diff of tuned weights, np.add recovers the tuned weights from a diff. added_rows:
    name -> row (columns,) for the rows that a matrix of the base lacks; 0 by default. Raises ValueError, which names
    the tensor, if a result is NaN or infinite.
    """
    remedy = "use intact copies of both inputs"
    if dtype == "F16":
        remedy += ", or omit --is_fp16 if a value is too large for float16"

    def combine(name: str, bounds: tuple[int, int]) -> np.ndarray:
        base_values = read_rounded(base[name], bounds, dtype, (added_rows or {}).get(name))
        values = operation(read_rounded(weights[name], bounds, dtype), base_values)
        bits = from_float32(values, dtype)
        check_finite(bits, Spec(f"{name} ({operation.__name__} in {TORCH_NAME[dtype]})", dtype, ()), remedy)
        return bits

    def produce(spec: Spec) -> Iterator[np.ndarray]:
        return in_order(lambda bounds: combine(spec.name, bounds), ranges(spec.elements, CHUNK))

    set_dtype(folder, TORCH_NAME[dtype])
    specs = [Spec(name, dtype, tensor.shape) for name, tensor in weights.items()]
    return write_shards(folder, specs, produce, shard_limit)


def check_base(
    path_diff: Path, diff: Weights, base: Weights, path_base: Path, published: str
) -> tuple[str, str, dict[str, np.ndarray]]:
    """Verify the base by the recorded fingerprint or by a published sum of the recovered weights.

    Returns three values:
        criterion: phrase for the summary that says how the base was verified, or that it was not.
        repository: the diff's repository, also recognised by the sum of the recovered weights; "" if unknown.
        added_rows: as for `write_combined`; {} if these rows are 0.
    published: the diff's repository; "" to recognise it. Raises ValueError if path_base is not the base, if path_diff
    is recognised as a full model, or if `published` is given for a diff with a record.
    """
    if recorded := recorded_base(path_diff):
        if published:
            raise ValueError(f"{path_diff / DIFF_RECORD} identifies the base of this diff; omit --published")
        if not set(base_fingerprints(base, "checking the base")) & set(recorded):
            raise ValueError(
                f"{path_base} is not the base of {path_diff}; give the model with the weights {recorded[0]:.16} "
                "(python tools/checkpoint.py show FOLDER prints this fingerprint)"
            )
        return "base verified by its fingerprint", "", {}
    base = with_tied_output(path_base, base)
    refuse_full_model(path_diff, diff, path_base, base)
    found = published_sum(path_diff, published)
    file = path_diff / "config.json"
    missing = [name for name in diff if name not in base and name.endswith(FREQUENCIES)]
    config, layers = read_json(file), len(missing)  # number of layers whose FREQUENCIES the base lacks
    for key in ("hidden_size", "num_attention_heads") if layers else ():
        config_number(file, config, key)
    summands = [*diff.values(), *(base[name] for name in diff if name in base)]
    actual, means = sum_weights(summands, config, layers), mean_rows(diff, base)
    with_means = actual + sum(
        float(mean.sum(dtype=np.float64)) * (diff[name].shape[0] - base[name].shape[0]) for name, mean in means.items()
    )
    if found is None:
        name = find_by_sum(actual, config) or find_by_sum(with_means, config)
        added_rows = means if has_mean_rows(name) else {}
        if name:
            total = with_means if added_rows else actual
            return f"base verified by the published sum of {name}, {total:.4f}", name, added_rows
        text = f"the recovered weights add up to {sum_phrase(actual, config)}"
        return f"BASE NOT VERIFIED: {path_diff} does not identify its base; {text}", "", {}
    expected, dtype, name = found
    added_rows = means if has_mean_rows(name) else {}
    actual = with_means if added_rows else actual
    if not is_published_sum(actual, expected, dtype):
        raise ValueError(
            f"{path_base} + {path_diff} add up to {actual:.4f}, the published model to {expected:.4f}: "
            "the base is wrong or a file is damaged; compare both with their published hashes"
        )
    return f"base verified by the published sum {expected:.4f}", name or find_by_sum(actual, config), added_rows


def has_mean_rows(repository: str) -> bool:
    """Return whether recovering this published diff initialises added rows with the mean of the base's rows."""
    return entry_of(repository).get("added_rows") == "mean"


def published_sum(path_diff: Path, repository: str) -> tuple[float, str, str] | None:
    """Return (published sum of all recovered weights, their type, the diff's repository); None if unknown.

    repository: the diff's repository; "" to recognise the folder.
    """
    if (path_diff / SUM_FILE).is_file():
        return float((path_diff / SUM_FILE).read_text()), "float32", repository
    sums = {name: entry["sum"] for name, entry in registry()["repositories"].items() if "sum" in entry}
    if repository and "sum" not in entry_of(repository):
        raise ValueError(f"{REGISTRY.name} has no sum for {repository}; it has {', '.join(sums)}")
    name = repository or published_repository(path_diff, "sum")
    return next(((value, dtype, name) for dtype, value in entry_of(name).get("sum", {}).items()), None)
