"""Download a checkpoint from the Hugging Face hub or a mirror: the published ones by name, or any other.

    python tools/download.py --download_path checkpoints/diff --only_base --fp16
    python tools/download.py --download_path checkpoints/lora --only_lora
    python tools/download.py --download_path checkpoints --both
    python tools/download.py --download_path checkpoints/other --specify --repo_name OWNER/NAME --revision main \
        --pattern "*.safetensors,*.json" --exclude "*fp32*" --endpoint https://MIRROR

The files arrive in a folder DOWNLOAD_PATH.partial, each compared with the size and hash that the hub publishes before
it has its name, and the folder gets its own when all are right. The same command goes on after an interruption, inside
a large file too. On a finished folder it compares, and fetches what is damaged or missing: it knows by the note
.download/note.json in it that it came from this repository and commit; any other folder is left alone. Mirrors, tokens
and proxies are the hub client's variables: HF_ENDPOINT=https://… HF_TOKEN=… HTTPS_PROXY=…
"""

from command_line.fire_commands import run

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

from hub_download.hub_files import RemoteFile, Transfer, amount, counted, differing, each, meter
from hub_download.hub_folders import Note, check_links, check_space, held, left, move, read_note, staging, write_note
from hub_download.hub_listing import Listing, Source, explain, list_files, resolve_endpoint
from hub_download.hub_retry import say

PUBLISHED = {  # the 13B models: the base as a difference to LLaMA's weights, and its LoRA adapter
    "base": "zjunlp/zhixi-13b-diff",
    "base fp16": "zjunlp/zhixi-13b-diff-fp16",
    "lora": "zjunlp/zhixi-13b-lora",
}
KINDS = ("model", "dataset", "space")


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


def fetch(source: Source, target: Path) -> str:
    """Bring the repository into the new folder `target`, or what is wrong in it; a line that says what is there.

    Raises ValueError where the hub refuses, the disk is too small, or target is another folder. What arrived stays in
    `<target>.partial` for the next run.
    """
    stop = threading.Event()
    target = target.resolve() if target.is_symlink() else target
    if target.is_file() or not target.name:
        raise ValueError(f"{target} is a file or has no name; --download_path takes a new folder")
    partial = target.with_name(f"{target.name}.partial")
    if partial.is_symlink():
        raise ValueError(f"{partial} is a link; remove it, or name another folder")
    note = read_note(target)
    listing = wanted(source, target, note, stop)
    files = with_noted_hashes(listing, [read_note(partial), note])
    title = f"{source.repo} at {listing.commit[:10]}, {counted(len(files))}, {amount(sum(file.size for file in files))}"

    is_new = not target.is_dir() or not any(target.iterdir())
    wrong = files if is_new else differing(target, files, stop)
    if not wrong:
        return f"{target}: complete already ({title}, {verdict(listing, files)})"
    if not is_new and note is None:
        raise ValueError(f"{target} is not {title}: {wrong[0].name} differs; name a new folder, or remove this one")
    if target.is_mount():
        raise ValueError(f"{target} is a mount point, into which nothing can be renamed; name a folder inside it")
    check_links(target, wrong)
    check_space(partial, wrong)
    hashes = {file.name: file.hash for file in files if file.hash}
    arrived = Note(source.repo, source.kind, note.revision if note else source.revision, listing.commit, hashes)
    with staging(partial, arrived, files):
        bring(source, partial, wrong, arrived, title, stop)
    if is_new:
        partial.replace(target)
        return f"{target}: {title}, {verdict(listing, files)}"
    move(partial, target, wrong)
    write_note(target, replace(arrived, files=(note.files if note else {}) | arrived.files))
    shutil.rmtree(partial)
    return f"{target}: fetched {listed(wrong)}; complete now ({title}, {verdict(listing, files)})"


def listed(files: list[RemoteFile]) -> str:
    """The first few names."""
    return ", ".join(file.name for file in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def verdict(listing: Listing, files: list[RemoteFile]) -> str:
    """What the files were compared with."""
    published = sum(bool(file.hash) for file in listing.files)
    known = sum(bool(file.hash) for file in files)
    if not known:
        return "only sizes could be checked, since no hashes are published"
    if known < len(files):
        return f"only sizes could be checked of {counted(len(files) - known)}, the others' hashes are as published"
    if published < len(files):
        return f"{counted(len(files) - published)} as first arrived, since no hash is published"
    return "every hash as published"


def wanted(source: Source, target: Path, note: Note | None, stop: threading.Event) -> Listing:
    """What the hub has of the source; of the commit that `target` holds, where this same command made it.

    Raises ValueError where the folder's note is of another repository or revision.
    """
    listing = list_files(source, stop)
    if note is None:
        return listing
    if (note.repository, note.kind) != (source.repo, source.kind):
        raise ValueError(f"{target} holds {note.repository}, not {source.repo}; name a new folder")
    if note.commit == listing.commit:
        return listing
    commit, other = note.commit[:10], listing.commit[:10]
    if note.revision != source.revision:
        raise ValueError(f"{target} holds {source.repo} at {commit}, not at {other}; name a new folder")
    say(f"{source.repo} is at {other} now; {target} stays at {commit}, and a new folder would get the other")
    return list_files(replace(source, revision=note.commit), stop)


def with_noted_hashes(listing: Listing, notes: list[Note | None]) -> list[RemoteFile]:
    """The files, with the hash of what arrived first where the hub publishes none; a later note counts more."""
    noted: dict[str, str] = {}
    for note in notes:
        noted |= note.files if note and note.commit == listing.commit else {}
    return [file if file.hash else replace(file, hash=noted.get(file.name, "")) for file in listing.files]


def bring(
    source: Source, partial: Path, wrong: list[RemoteFile], note: Note, title: str, stop: threading.Event
) -> None:
    """Fetch into the partial folder those of the files that it lacks, and note the hash of each.

    Raises ValueError that says how much is there after an error, KeyboardInterrupt that does after Ctrl-C.
    """
    from huggingface_hub import errors
    from huggingface_hub.utils import build_hf_headers

    missing = differing(partial, wrong, stop)
    for file in missing:
        (partial / file.name).unlink(missing_ok=True)
    free = amount(shutil.disk_usage(partial).free)
    print(f"{title}: {counted(len(missing))}, {amount(left(partial, missing))} to fetch, {free} free", flush=True)
    lock = threading.Lock()

    def state() -> str:
        there = sum(held(partial / file.name) == file.size for file in wrong)
        size = sum(file.size for file in wrong)
        arrived = f"{there} of {len(wrong)} files, {amount(size - left(partial, wrong))} of {amount(size)} are there"
        return f"{arrived}; the same command goes on"

    try:
        with meter(sum(file.size for file in missing), source.repo) as bar:
            transfer = Transfer(partial, build_hf_headers(), stop, bar)

            def work(file: RemoteFile) -> str:
                digest = transfer.fetch(file)
                with lock:
                    note.files[file.name] = digest
                    write_note(partial, note)
                return digest

            hashes = each(work, missing, stop)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: {state()}") from None
    except errors.HTTPError as error:
        raise ValueError(f"{explain(error, source)}; {state()}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; {state()}") from error
    damaged = [file for file, digest in zip(missing, hashes, strict=True) if not digest]
    if damaged:
        raise ValueError(f"{counted(len(damaged))} of {source.repo} arrived damaged ({listed(damaged)}); {state()}")


def main(
    download_path: str,
    only_base: bool = False,
    only_lora: bool = False,
    both: bool = False,
    specify: bool = False,
    fp16: bool = False,
    repo_name: str = "",
    repo_type: str = "model",
    revision: str = "",
    pattern: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    endpoint: str = "",
) -> None:
    """Download the base, the adapter, both (each to a folder of its own under download_path), or any repository.

    Args:
        download_path: the new folder, or one that this command made; with both, the folder that theirs are made in.
        only_base: the difference between the published 13B base and LLaMA.
        only_lora: the published LoRA adapter.
        both: the two of them.
        specify: the repository of repo_name.
        fp16: the base difference in half precision.
        repo_name: OWNER/NAME on the hub.
        repo_type: model, dataset or space.
        revision: a branch, tag or commit; the hub's main branch where it is not given.
        pattern: files wanted, as "*.safetensors,*.json"; * also matches /, and a pattern without match is an error.
        exclude: files not wanted, in the same notation.
        endpoint: address of a hub or mirror; HF_ENDPOINT, or else the public hub, where it is not given.
    """
    choices = choose(download_path, only_base, only_lora, both, specify, fp16, repo_name)
    if repo_type not in KINDS or (repo_type != "model" and not specify):
        raise ValueError(f"--repo_type is one of {', '.join(KINDS)}, with --specify, not {repo_type!r}")
    address = resolve_endpoint(endpoint)
    for repo, target in choices:
        source = Source(repo, repo_type, revision, address, pattern, exclude)
        print(fetch(source, target), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # the client would ask the public hub, whatever the endpoint
    run(main)
