"""Record the hashes of a diff's small files (tokenizer, configuration, template, …) in diff.json, and verify them."""

import json
import sys
from pathlib import Path

from blake3 import blake3
from checkpoint_io.checkpoint_folders import read_json
from checkpoint_seals.seal_check import SEAL, WEIGHTS, hash_file, sealed_files
from model_folders.diff_recognition import DIFF_RECORD

RECORDS = (DIFF_RECORD, "run.json")


def small_files(folder: Path) -> dict[str, Path]:
    """Return {relative name: path} of the files beside the weights, except diff.json and run.json.

    run.json names folders; without its hash, diff.json depends on the models only.
    """
    files = sealed_files(folder)
    return {name: file for name, file in files.items() if name not in RECORDS and file.suffix not in WEIGHTS}


def record_files(folder: Path) -> None:
    """Add {"files": {name: BLAKE3}} to the diff.json of a folder whose other files are complete."""
    files = {name: hash_file(path, blake3) for name, path in small_files(folder).items()}
    (folder / DIFF_RECORD).write_text(json.dumps(read_json(folder / DIFF_RECORD) | {"files": files}))


def verify_files(folder: Path) -> None:
    """Compare a diff's small files with its record; print a notice if the record has no hashes and there is no seal.

    Raises FileNotFoundError or ValueError for the first file that is missing or differs. Files that are not recorded,
    such as a README, are ignored. Published diffs without diff.json are not compared.
    """
    if not (folder / DIFF_RECORD).is_file():
        return
    record = read_json(folder / DIFF_RECORD)
    files = record.get("files")
    if files is None:
        if isinstance(record.get("base"), str) and not (folder / SEAL).is_file():
            fact = f"{folder} has no hashes of its tokenizer and other small files"
            print(f"notice: {fact}, so these are not verified", file=sys.stderr)
        return
    if not isinstance(files, dict):
        raise ValueError(f"{folder / DIFF_RECORD} is damaged ({files!r:.80} is not a list of files); download it again")
    for name, value in files.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}, which {DIFF_RECORD} lists, is missing; download it again")
        if hash_file(folder / name, blake3) != value:
            raise ValueError(f"{folder / name} differs from its hash in {DIFF_RECORD}; download it again")
