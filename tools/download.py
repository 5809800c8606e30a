"""Download a checkpoint from the Hugging Face hub: the published ones by name, or any other.

    python tools/download.py --download_path checkpoints/diff --only_base --fp16
    python tools/download.py --download_path checkpoints/lora --only_lora
    python tools/download.py --download_path checkpoints --both
    python tools/download.py --download_path checkpoints/other --specify --repo_name OWNER/NAME --revision main

The files arrive in a folder DOWNLOAD_PATH.partial, are compared with the sizes and hashes that the hub publishes, and
get their name when all of them are right. The same command goes on after an interruption (with the files that were not
finished), and on a finished folder it only compares. Mirrors, tokens and the rest are the hub client's own variables:
HF_ENDPOINT=https://… HF_TOKEN=… (a mirror without Xet storage also wants HF_HUB_DISABLE_XET=1).
"""

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import fire
from tqdm import tqdm

PUBLISHED = {  # the 13B models: the base as a difference to LLaMA's weights, and its LoRA adapter
    "base": "zjunlp/zhixi-13b-diff",
    "base fp16": "zjunlp/zhixi-13b-diff-fp16",
    "lora": "zjunlp/zhixi-13b-lora",
}
CHUNK = 1 << 22  # bytes read at once


def choose(
    download_path: str, only_base: bool, only_lora: bool, both: bool, specify: bool, fp16: bool, repo_name: str
) -> list[tuple[str, Path]]:
    """[(repository, its folder)]: the download path itself, or for both one folder below it for each.

    Raises ValueError unless exactly one choice was made.
    """
    if [only_base, only_lora, both, specify].count(True) != 1:
        raise ValueError("say what to download: exactly one of --only_base, --only_lora, --both and --specify")
    if fp16 and not (only_base or both):
        raise ValueError("--fp16 is a choice of base weights; give it with --only_base or --both")
    if bool(repo_name) != specify:
        raise ValueError("--specify and --repo_name OWNER/NAME go together")
    target, base = Path(download_path), PUBLISHED["base fp16" if fp16 else "base"]
    if both:
        return [(repo, target / repo.split("/")[1]) for repo in (base, PUBLISHED["lora"])]
    return [(repo_name if specify else base if only_base else PUBLISHED["lora"], target)]


def fetch(repo: str, revision: str, target: Path) -> str:
    """Bring the repository into the new folder `target`; returns a line that says what is there.

    Raises ValueError where the hub refuses, the disk is too small, or target is another folder.
    """
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    info = describe(repo, revision)
    files = info.siblings
    size = f"{repo} at {info.sha[:10]}, {len(files)} files, {sum(file.size or 0 for file in files) / 1e9:.2f} GB"
    if target.is_file():
        raise ValueError(f"{target} is a file; --download_path takes a new folder")
    if target.is_dir() and any(target.iterdir()):
        if wrong := differences(target, files):
            raise ValueError(f"{target} is not {size}: {wrong[0]} differs; name a new folder, or remove this one")
        return f"{target}: complete already ({size})"

    partial = target.with_name(f"{target.name}.partial")
    drop_strays(partial, files)
    check_space(partial, files)
    try:
        snapshot_download(repo, revision=info.sha, local_dir=partial)
    except (errors.HTTPError, OSError) as error:
        raise ValueError(f"{repo} broke off ({first_line(error)}); the same command goes on") from error
    if wrong := differences(partial, files):
        for name in wrong:
            (partial / name).unlink(missing_ok=True)
        raise ValueError(
            f"{len(wrong)} files of {repo} are missing or arrived damaged ({wrong[0]}); the same command fetches them"
        )
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client's notes about what it had fetched
    partial.replace(target)
    return f"{target}: {size}"


def describe(repo: str, revision: str) -> Any:
    """The hub's ModelInfo: the commit in `sha`, the files with sizes and hashes in `siblings`.

    Raises ValueError with one line where there is no such repository or revision, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, errors

    hub = HfApi()
    try:
        return hub.model_info(repo, revision=revision or None, files_metadata=True)
    except errors.GatedRepoError:
        fact = f"{repo} is given out on request: accept its terms on {hub.endpoint}/{repo} and set HF_TOKEN"
    except errors.RevisionNotFoundError:
        fact = f"{repo} has no revision {revision!r}; look at {hub.endpoint}/{repo}/tree/main and correct --revision"
    except errors.RepositoryNotFoundError:
        fact = f"{hub.endpoint} has no repository {repo}, or it is private; correct --repo_name or set HF_TOKEN"
    except errors.OfflineModeIsEnabled:
        fact = "HF_HUB_OFFLINE is set, so nothing can be downloaded; unset it"
    except errors.HFValidationError as error:
        fact = f"{repo!r} is no repository name ({first_line(error)}); --repo_name takes OWNER/NAME"
    except (errors.HTTPError, OSError) as error:
        reason = first_line(error)
        fact = f"{hub.endpoint} does not answer ({reason}); look at the network, or set HF_ENDPOINT to a mirror"
    raise ValueError(fact)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# --- files ------------------------------------------------------------------------------------------------------------


def differences(folder: Path, files: list[Any]) -> list[str]:
    """Names of the files that are missing in the folder or differ from the hub's size or hash."""
    wrong = []
    total = sum(file.size or 0 for file in files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="comparing hashes", disable=None) as bar:
        for file in files:
            if not is_whole(folder / file.rfilename, file, bar):
                wrong.append(file.rfilename)
    return wrong


def is_whole(path: Path, file: Any, bar: Any) -> bool:
    """Whether the file is there with the hub's size and hash (as far as the hub tells them)."""
    if not path.is_file() or file.size not in (None, path.stat().st_size):
        return False
    expected = published_hash(file)
    return not expected or hash_of(path, expected, bar) == expected


def published_hash(file: Any) -> str:
    """sha256 of a large file, git's object id (sha1) of a small one, "" where the hub tells neither."""
    return (file.lfs.sha256 if file.lfs else file.blob_id) or ""


def hash_of(path: Path, expected: str, bar: Any) -> str:
    """The file's hash, of the kind that `expected` is: 64 digits sha256, 40 digits git's sha1 with its header."""
    digest = hashlib.sha256() if len(expected) == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def drop_strays(partial: Path, files: list[Any]) -> None:
    """Remove what an earlier, other download left in the partial folder."""
    known = {partial / file.rfilename for file in files}
    for path in partial.rglob("*"):
        if path.is_file() and path not in known and ".cache" not in path.relative_to(partial).parts:
            path.unlink()


def check_space(partial: Path, files: list[Any]) -> None:
    """Make the partial folder; raises ValueError where the disk cannot take the files that are still to come."""
    above = next(folder for folder in (partial, *partial.absolute().parents) if folder.is_dir())
    needed = sum(file.size or 0 for file in files if not (partial / file.rfilename).is_file())
    free = shutil.disk_usage(above).free
    if needed > free:
        raise ValueError(
            f"{above} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are to come; choose another disk"
        )
    partial.mkdir(parents=True, exist_ok=True)


def main(
    download_path: str,
    only_base: bool = False,
    only_lora: bool = False,
    both: bool = False,
    specify: bool = False,
    fp16: bool = False,
    repo_name: str = "",
    revision: str = "",
    **unknown: object,
) -> None:
    """Download the base, the adapter, both (each to a folder of its own under download_path), or any repository.

    Args:
        download_path: the new folder; with both, the folder that theirs are made in.
        only_base: the difference between the published 13B base and LLaMA.
        only_lora: the published LoRA adapter.
        both: the two of them.
        specify: the repository of repo_name.
        fp16: the base difference in half precision.
        repo_name: OWNER/NAME on the hub.
        revision: a branch, tag or commit; the hub's main branch where it is not given.
        unknown: nothing; options that do not exist are refused.
    """
    if unknown:
        raise ValueError(f"unknown option --{next(iter(unknown))}; see --help")
    for repo, target in choose(str(download_path), only_base, only_lora, both, specify, fp16, str(repo_name)):
        print(fetch(repo, str(revision), target), flush=True)


if __name__ == "__main__":
    try:
        fire.Fire(main, ["--", "--help"] if "--help" in sys.argv else None)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on with the files that are missing", file=sys.stderr)
        sys.exit(130)
