"""Download the files of a repository into a new folder, or repair an earlier download."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

from hub_download.hub_files import (
    RemoteFile,
    Transfer,
    format_bytes,
    format_count,
    mismatched_files,
    progress_bar,
    run_in_threads,
)
from hub_download.hub_folders import (
    DownloadNote,
    check_free_space,
    check_links,
    file_size,
    missing_bytes,
    move_files,
    read_note,
    staging,
    write_note,
)
from hub_download.hub_listing import Listing, RepositorySource, explain, list_files
from hub_download.hub_retry import notice


def download(source: RepositorySource, target: Path) -> str:
    """Download a repository into the folder `target`, or replace its missing and damaged files; return a summary line.

    Raises ValueError if the hub refuses, the disk is too small, or target has other content. Downloaded files are kept
    in `<target>.partial` for the next run.
    """
    stop = threading.Event()
    target = target.resolve() if target.is_symlink() else target
    if target.is_file() or not target.name:
        raise ValueError(f"{target} is a file or has no name; --download_path takes a new folder")
    partial = target.with_name(f"{target.name}.partial")
    if partial.is_symlink():
        raise ValueError(f"{partial} is a link; remove it, or name another folder")
    note = read_note(target)
    listing = listing_for(source, target, note, stop)
    files = with_noted_hashes(listing, [read_note(partial), note])
    size = format_bytes(sum(file.size for file in files))
    title = f"{source.repo} at {listing.commit[:10]}, {format_count(len(files))}, {size}"

    is_new = not target.is_dir() or not any(target.iterdir())
    wrong = files if is_new else mismatched_files(target, files, stop)
    if not wrong:
        return f"{target}: complete already ({title}, {verification(listing, files)})"
    if not is_new and note is None:
        raise ValueError(f"{target} is not {title}: {wrong[0].name} differs; name a new folder, or remove this one")
    if target.is_mount():
        raise ValueError(f"{target} is a mount point and cannot be replaced; name a folder inside it")
    check_links(target, wrong)
    check_free_space(partial, wrong)
    hashes = {file.name: file.hash for file in files if file.hash}
    revision = note.revision if note else source.revision
    arrived = DownloadNote(source.repo, source.kind, revision, listing.commit, hashes)
    with staging(partial, arrived, files):
        fetch_files(source, partial, wrong, arrived, title, stop)
    if is_new:
        partial.replace(target)
        return f"{target}: {title}, {verification(listing, files)}"
    move_files(partial, target, wrong)
    write_note(target, replace(arrived, files=(note.files if note else {}) | arrived.files))
    shutil.rmtree(partial)
    return f"{target}: downloaded {first_names(wrong)}; complete now ({title}, {verification(listing, files)})"


def first_names(files: list[RemoteFile]) -> str:
    return ", ".join(file.name for file in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def verification(listing: Listing, files: list[RemoteFile]) -> str:
    """Return a phrase that describes how the files were verified."""
    published = sum(bool(file.hash) for file in listing.files)
    known = sum(bool(file.hash) for file in files)
    if not known:
        return "only sizes could be checked, since no hashes are published"
    if known < len(files):
        return f"only sizes could be checked of {format_count(len(files) - known)}, the others' hashes are as published"
    if published < len(files):
        return f"{format_count(len(files) - published)} as first downloaded, since no hash is published"
    return "every hash as published"


def listing_for(source: RepositorySource, target: Path, note: DownloadNote | None, stop: threading.Event) -> Listing:
    """List the source's files, at the commit in the note of `target` if there is one.

    Raises ValueError if the note names another repository or revision.
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
    notice(f"{source.repo} is now at {other}; {target} stays at {commit}, a new folder would get {other}")
    return list_files(replace(source, revision=note.commit), stop)


def with_noted_hashes(listing: Listing, notes: list[DownloadNote | None]) -> list[RemoteFile]:
    """Return the files; hashes that the hub does not publish come from the notes, later notes first."""
    noted: dict[str, str] = {}
    for note in notes:
        noted |= note.files if note and note.commit == listing.commit else {}
    return [file if file.hash else replace(file, hash=noted.get(file.name, "")) for file in listing.files]


def fetch_files(
    source: RepositorySource,
    partial: Path,
    wrong: list[RemoteFile],
    note: DownloadNote,
    title: str,
    stop: threading.Event,
) -> None:
    """Download the files that are missing from the partial folder, and note the hash of each.

    Raises ValueError after an error and KeyboardInterrupt after Ctrl-C; the message says how much has arrived.
    """
    from huggingface_hub import errors
    from huggingface_hub.utils import build_hf_headers

    missing = mismatched_files(partial, wrong, stop)
    for file in missing:
        (partial / file.name).unlink(missing_ok=True)
    free, needed = format_bytes(shutil.disk_usage(partial).free), format_bytes(missing_bytes(partial, missing))
    print(f"{title}: {format_count(len(missing))}, {needed} to download, {free} free", flush=True)
    lock = threading.Lock()

    def state() -> str:
        complete = sum(file_size(partial / file.name) == file.size for file in wrong)
        size = sum(file.size for file in wrong)
        bytes_arrived = f"{format_bytes(size - missing_bytes(partial, wrong))} of {format_bytes(size)}"
        return f"{complete} of {len(wrong)} files, {bytes_arrived} have arrived; the same command resumes"

    try:
        with progress_bar(sum(file.size for file in missing), source.repo) as bar:
            transfer = Transfer(partial, build_hf_headers(), stop, bar)

            def work(file: RemoteFile) -> str:
                digest = transfer.fetch(file)
                with lock:
                    note.files[file.name] = digest
                    write_note(partial, note)
                return digest

            hashes = run_in_threads(work, missing, stop)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: {state()}") from None
    except errors.HTTPError as error:
        raise ValueError(f"{explain(error, source)}; {state()}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; {state()}") from error
    damaged = [file for file, digest in zip(missing, hashes, strict=True) if not digest]
    if damaged:
        count = format_count(len(damaged))
        raise ValueError(f"{count} of {source.repo} arrived damaged ({first_names(damaged)}); {state()}")
