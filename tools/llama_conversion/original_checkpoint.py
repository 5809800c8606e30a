"""Find and read LLaMA's original files: params.json, consolidated.NN.pth, tokenizer.model, checklists."""

import sys
from dataclasses import dataclass
from pathlib import Path

from checkpoint_seals.published_hashes import verify_checklist
from exact_tokenizers.tokenizer_folders import is_rank_table

from llama_conversion import llama_layout
from llama_conversion.llama_layout import JoinedWeight
from llama_conversion.llama_params import LlamaParams, check_size, check_version, infer_version, read_params

# Largest accepted difference between the files' copies of a norm. The copies are equal except in version 3's 70B
# (source of the tolerance: AI-Hypercomputer/jetstream-pytorch #101). The published converter uses the first copy.
TOLERANCE = 0.01


def notice(text: str) -> None:
    print(f"notice: {text}", file=sys.stderr)


@dataclass(frozen=True)
class OriginalCheckpoint:
    """An original checkpoint: its tensors are memory-mapped, and their shapes are verified."""

    folder: Path
    params: LlamaParams
    tokenizer: Path
    version: str
    files: tuple[Path, ...]  # one per rank
    weights: list[JoinedWeight]


def find_weights(root: Path, size: str) -> Path:
    """Return the folder that contains params.json: root or root/size; FileNotFoundError lists other candidates."""
    for folder in (root, root / size):
        if (folder / "params.json").is_file():
            return folder
    others = ", ".join(sorted(str(path.parent) for path in root.glob("*/params.json")))
    raise FileNotFoundError(
        f"{root} has neither params.json nor {size}/params.json; --input_dir takes the folder of the original files"
        + (f", such as {others}" if others else "")
    )


def find_tokenizer(root: Path, weights: Path) -> Path:
    """Return the path of tokenizer.model: beside the weights, in root, or in the parent of the weights' folder.

    LLaMA-2 is distributed with tokenizer.model in that parent. Raises FileNotFoundError if no folder has it.
    """
    for folder in (weights, root, weights.absolute().parent):
        if (folder / "tokenizer.model").is_file():
            return folder / "tokenizer.model"
    raise FileNotFoundError(f"neither {weights} nor the folder above has tokenizer.model; copy the original one there")


def verify_checklists(original: OriginalCheckpoint) -> int:
    """Compare the files that the checklists name with the listed hashes; return the number of files.

    Prints a notice about input files that no checklist names. Raises FileNotFoundError or ValueError for the first file
    that is missing or differs.
    """
    lists = (original.folder / "checklist.chk", original.tokenizer.parent / "tokenizer_checklist.chk")
    verified = [file for path in lists if path.is_file() for file in verify_checklist(path)]
    resolved = {file.resolve() for file in verified}
    used = (*original.files, original.folder / "params.json", original.tokenizer)
    if unlisted := [file.name for file in used if file.resolve() not in resolved]:
        notice(f"no checklist names {', '.join(unlisted)}, so these files could not be verified")
    return len(verified)


def read_original(root: Path, size: str, version: str) -> OriginalCheckpoint:
    """Find and read an original checkpoint.

    size: --model_size. version: --llama_version, or "" to infer it from the files. Raises FileNotFoundError or
    ValueError if a file is missing, damaged or inconsistent with the others.
    """
    folder = find_weights(root, size)
    params = read_params(folder / "params.json")
    check_size(size, params, folder / "params.json")
    tokenizer = find_tokenizer(root, folder)
    has_rank_table = is_rank_table(tokenizer)
    if version:
        check_version(version, params, has_rank_table)
    ranks = llama_layout.read_ranks(folder)
    embedding = next(iter(ranks.values())).get(llama_layout.EMBEDDING)
    version = version or infer_version(params, embedding.dtype if embedding else "", has_rank_table)
    if version == "2" and params.norm_eps == 1e-6:  # meta-llama/llama #771
        notice(
            "params.json has norm_eps 1e-06, an error in LLaMA-2 7B's first release (right: 1e-05); download it again"
        )
    weights = llama_layout.plan_weights(ranks, params, may_be_tied=version == "3.2")
    return OriginalCheckpoint(folder, params, tokenizer, version, tuple(ranks), weights)


def weights_to_write(original: OriginalCheckpoint) -> list[JoinedWeight]:
    """Return all weights, without the output matrix (lm_head) if it equals the embedding.

    Raises ValueError if the files' copies of a norm differ by more than the tolerance.
    """
    gap = llama_layout.compare_copies(original.weights, TOLERANCE if original.version >= "3" else 0.0)
    if gap:
        notice(f"the files' copies of the norms differ by up to {gap:.2g}; {original.files[0].name}'s are used")
    if not llama_layout.is_output_tied(original.weights):
        return original.weights
    return [weight for weight in original.weights if weight.spec.name != "lm_head.weight"]
