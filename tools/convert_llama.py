"""Convert LLaMA's original weights (consolidated.NN.pth, params.json, tokenizer.model) to a Hugging Face folder.

    python tools/convert_llama.py --input_dir llama-3.2-1b --model_size 1B --output_dir checkpoints/llama-3.2-1b
    python tools/convert_llama.py --input_dir LLaMA --model_size 13B --output_dir checkpoints/llama-13b
    python tools/convert_llama.py --input_dir llama-2-70b-chat --model_size 70Bf --output_dir checkpoints/70b-chat

For LLaMA 1, 2, 3, 3.1, 3.2 (1B, 3B) and 3.3, in any number of files. --input_dir holds params.json, or is the folder
above with one named for the size (LLaMA/13B beside LLaMA/tokenizer.model, as LLaMA-1 was given out). Where there is a
checklist.chk, the files are compared with it first. The weights keep their type and every bit. They are streamed:
besides the mapped files a few MB are held, however large the model (files from before PyTorch 1.6 cannot be mapped and
are read whole). Nothing in the files is executed.
"""

from command_line.fire_commands import run

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from checkpoint_io import resume_journal
from checkpoint_io.checkpoint_folders import carry, existing, new_folder, write_json, write_run
from checkpoint_io.published_hashes import read_list, verify_list
from checkpoint_io.seal_check import verify_seal
from checkpoint_io.tensor_files import parse_size, verify_written, write_shards
from checkpoint_io.tensors import TORCH_NAME
from llama_conversion.llama_layout import EMBEDDING, Joined, compare_copies, plan, read_ranks, stream, tied
from llama_conversion.llama_params import (
    Params,
    check_size,
    check_version,
    context_of,
    model_config,
    read_params,
    version_of,
)
from llama_conversion.llama_tokenizer import Words, check, is_ranked, read_words

# How far the files' copies of a norm may be apart. They are equal but in version 3's 70B, where they differ slightly
# (AI-Hypercomputer/jetstream-pytorch #101, which takes this tolerance); the published converter takes the first file's.
TOLERANCE = 0.01


def notice(text: str) -> None:
    print(f"notice: {text}", file=sys.stderr)


# --- where the files are ----------------------------------------------------------------------------------------------


def find_weights(root: Path, size: str) -> Path:
    """The folder of params.json: root, or the size's own in it; FileNotFoundError says where there are some."""
    for folder in (root, root / size):
        if (folder / "params.json").is_file():
            return folder
    others = ", ".join(sorted(str(path.parent) for path in root.glob("*/params.json")))
    raise FileNotFoundError(
        f"{root} has neither params.json nor {size}/params.json; --input_dir takes the folder of the original files"
        + (f", such as {others}" if others else "")
    )


def find_tokenizer(root: Path, weights: Path) -> Path:
    """tokenizer.model with the weights, in root, or beside the weights' folder, as LLaMA-2 was given out."""
    places = (weights, root, weights.absolute().parent)
    for folder in places:
        if (folder / "tokenizer.model").is_file():
            return folder / "tokenizer.model"
    raise FileNotFoundError(f"{weights} has no tokenizer.model, nor has the folder above; copy the original one there")


def verify_checklists(paths: Iterable[Path], used: Iterable[Path]) -> int:
    """Compare every file of the checklists that are there; returns how many were compared.

    Files in use that no checklist names are told of. Raises FileNotFoundError or ValueError with the first file that is
    missing or another.
    """
    named, count = set[Path](), 0
    for path in (path for path in paths if path.is_file()):
        count += verify_list(path.parent, path)[1]
        named |= {(path.parent / name).resolve() for name in read_list(path)}
    if unlisted := [file.name for file in used if file.resolve() not in named]:
        notice(f"no checklist names {', '.join(unlisted)}; whether they arrived whole cannot be told")
    return count


# --- converting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Original:
    """An original checkpoint, its tensors mapped and known to fit together."""

    folder: Path
    params: Params
    tokenizer: Path
    version: str
    files: tuple[Path, ...]  # of the ranks
    weights: list[Joined]


def read_original(root: Path, size: str, version: str) -> Original:
    """Find and read an original checkpoint; an error names what is missing, damaged or does not fit.

    version: as --llama_version says, or "" to go by the files.
    """
    folder = find_weights(root, size)
    params = read_params(folder / "params.json")
    check_size(size, params, folder / "params.json")
    tokenizer = find_tokenizer(root, folder)
    ranked = is_ranked(tokenizer)
    if version:
        check_version(version, params, ranked)
    ranks = read_ranks(folder)
    embedding = next(iter(ranks.values())).get(EMBEDDING)
    version = version or version_of(params, embedding.dtype if embedding else "", ranked)
    if version == "2" and params.norm_eps == 1e-6:  # meta-llama/llama #771
        notice(
            "params.json says norm_eps 1e-06, as that of LLaMA-2 7B did at first, by mistake for 1e-05; get it again"
        )
    return Original(folder, params, tokenizer, version, tuple(ranks), plan(ranks, params, may_tie=version == "3.2"))


def check_weights(original: Original) -> list[Joined]:
    """What is to be written: all weights, without an output that is the embedding. ValueError where copies differ."""
    gap = compare_copies(original.weights, TOLERANCE if original.version >= "3" else 0.0)
    if gap:
        notice(f"the files' copies of the norms differ by up to {gap:.2g}; {original.files[0].name}'s are taken")
    if not tied(original.weights):
        return original.weights
    return [weight for weight in original.weights if weight.spec.name != "lm_head.weight"]


def write_tokenizer(folder: Path, original: Original, words: Words, check_path: str) -> str:
    """Write the tokenizer files, compared with the original tokenizer; a phrase that says what held."""
    rows = original.weights[0].spec.shape[0]
    if words.size != rows:
        raise ValueError(
            f"{original.tokenizer} has {words.size:,} tokens, the embedding in {original.folder} {rows:,} rows; "
            "they are not of one model: put the right tokenizer.model there"
        )
    checked = check(words, check_path)
    words.tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", words.config)
    carry(original.tokenizer.parent, folder, ("tokenizer.model",))
    return checked


def convert(
    original: Original, target: str, instruct: bool, limit: int, check_path: str, options: Mapping[str, object]
) -> str:
    """Write the new folder target in shards of at most `limit` bytes; returns a line that says what is there.

    instruct: of a chat model. Raises ValueError and FileNotFoundError that name the file, and then leaves nothing.
    """
    source, version, params = original.folder, original.version, original.params
    verify_seal(source)
    lists = (source / "checklist.chk", original.tokenizer.parent / "tokenizer_checklist.chk")
    used = (*original.files, source / "params.json", original.tokenizer)
    run = resume_journal.identity("tools/convert_llama.py", options, {source, original.tokenizer.parent})
    with new_folder(target, sum(weight.spec.nbytes for weight in original.weights), run) as folder:
        compared = verify_checklists(lists, used)
        weights = {weight.spec.name: weight for weight in check_weights(original)}
        words = read_words(original.tokenizer, version, instruct)
        checked = write_tokenizer(folder, original, words, check_path)
        specs = [weight.spec for weight in weights.values()]
        hashes = write_shards(folder, specs, lambda spec: stream(weights[spec.name]), limit)
        verify_written(folder, hashes)
        dtype = TORCH_NAME[weights["model.layers.0.self_attn.q_proj.weight"].spec.dtype]
        ids = {"bos_token_id": words.bos, "eos_token_id": words.eos}
        shape = {"vocab_size": words.size, "tie_word_embeddings": "lm_head.weight" not in weights}
        write_json(folder / "config.json", model_config(params, version, dtype) | ids | shape)
        write_json(folder / "generation_config.json", ids)
        write_run(folder, "tools/convert_llama.py", options, {"original": source})
    if instruct:
        notice(f"{target} has no prompt format yet; put it in: python tools/set_template.py --model_path {target} …")
    listed = f"{compared} files as in the checklist, " if compared else ""
    return (
        f"{target}: LLaMA-{version} {params.size}, {len(specs)} tensors from {len(original.files)} file(s) in {dtype}, "
        f"context {context_of(params, version)}; {listed}tokenizer {checked}"
    )


def main(
    input_dir: str,
    model_size: str,
    output_dir: str,
    llama_version: str = "",
    instruct: bool = False,
    num_shards: int = 0,
    safe_serialization: bool = True,
    max_shard_size: str = "5GB",
    check_path: str = "",
) -> None:
    """Write the model of input_dir to the new folder output_dir.

    Args:
        input_dir: the folder of params.json, or the one above, in which it is named for the size.
        model_size: 1B, 3B, 7B, 8B, 13B, 30B, 34B, 65B or 70B, compared with params.json; 7Bf … are the chat models of
            LLaMA-2. auto goes by params.json alone.
        output_dir: a new folder.
        llama_version: 1, 2, 3, 3.1, 3.2 or 3.3; by default what the files show. It decides the context length.
        instruct: a chat model, whose answers end in other tokens from version 3 on.
        num_shards: how many consolidated.NN.pth there must be, if that is to be checked.
        safe_serialization: as it must be; only safetensors is written.
        max_shard_size: 5GB, 400MB or a number of bytes; a larger tensor gets a shard of its own.
        check_path: text to compare the tokenizer on besides the built-in cases: .jsonl with `text`, or one text a line.
    """
    if not safe_serialization:
        raise ValueError("--safe_serialization False is not done here; only safetensors is written")
    limit, chat = parse_size(max_shard_size), instruct or model_size.endswith("f")
    original = read_original(existing(input_dir, "--input_dir"), model_size, llama_version)
    if num_shards not in (0, len(original.files)):
        raise ValueError(
            f"--num_shards {num_shards}, but {original.folder} has {len(original.files)}; correct one of them"
        )
    options = {
        "input_dir": input_dir, "model_size": model_size, "output_dir": output_dir, "llama_version": original.version,
        "instruct": chat, "max_shard_size": max_shard_size,
    }  # fmt: skip
    print(convert(original, output_dir, chat, limit, check_path, options))


if __name__ == "__main__":
    run(main)
