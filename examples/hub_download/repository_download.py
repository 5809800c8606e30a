"""Download the files of a repository into a new folder, or repair an earlier download.

`<target>.partial` contains the downloaded files, complete and incomplete, and a locked journal that identifies the
download. Once all files are complete, a note with the repository and commit is added, and the folder is renamed to
`<target>`; in a repair, the files are moved into the existing folder instead.
"""

from command_line.command_errors import one_line

import json
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event

from chat_prompts.template_files import TEMPLATE, read_templates
from exact_tokenizers.tokenizer_folders import read_object
from partial_folders import resume_journal
from partial_folders.atomic_outputs import check_replaceable
from partial_folders.disk_space import check_space
from partial_folders.output_paths import folder_path, follow_last_link

from hub_download.hub_files import WORKERS, RemoteFile, download_file, mismatched_files, notice
from hub_download.hub_listing import explain_hub_error, list_files
from hub_download.model_registry import template_of
from hub_download.repository_source import NOTE, RepositorySource

NOTE_KEYS = ("repository", "kind", "revision", "commit")  # of a note; revision: as requested, "" for the main branch


def read_note(folder: Path) -> dict[str, str] | None:
    """Return the folder's note {NOTE_KEYS: …}, or None if it is missing or unreadable."""
    try:
        content = read_object(folder / NOTE)
        return {key: content[key] for key in NOTE_KEYS}
    except (OSError, ValueError, KeyError):
        return None


def format_bytes(size: float) -> str:
    """Return a readable size such as 26.03 GB or 1.05 MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def format_count(number: int) -> str:
    return f"{number} file" + "s" * (number != 1)


def first_names(files: list[RemoteFile]) -> str:
    return ", ".join(file.name for file in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def download(source: RepositorySource, target: Path) -> str:
    """Download a repository into the folder `target`, or replace its missing and damaged files; return a summary line.

    Raises ValueError if the hub refuses, the disk is too small, or target has other content. After an error, the
    downloaded files are kept in `<target>.partial` for the next run.
    """
    if target.is_file():
        raise ValueError(f"{target} is a file; --download_path takes a new folder")
    if is_new := not target.is_dir() or not any(target.iterdir()):
        folder_path(target)
    target = follow_last_link(target)
    note = read_note(target)
    commit, files = list_noted_commit(source, target, note)
    size = format_bytes(sum(file.size for file in files))
    title = f"{source.repo} at {commit[:10]}, {format_count(len(files))}, {size}"
    unknown = sum(not file.hash for file in files)
    sizes_only = f"only the sizes of {format_count(unknown)} could be checked, since no hashes are published"
    verified = f"{title}, {sizes_only if unknown else 'every hash as published'}"

    wrong = mismatched_files(target, files)
    if not wrong:
        return f"{target}: complete already ({verified})"
    if not is_new and note is None:
        raise ValueError(
            f"{target} is not a download of {source.repo} at {commit[:10]} ({wrong[0].name} is missing or differs); "
            "name a new folder, or remove this one"
        )
    if target.is_mount():
        raise ValueError(f"{target} is a mount point and cannot be replaced; name a folder inside it")
    partial = target.with_name(f"{target.name}.partial")
    for folder in (target, partial):
        check_links(folder, wrong)
    check_space(target, missing_bytes(partial, wrong))
    options = {"source": replace(source, revision=commit, endpoint="")}
    run = resume_journal.run_identity("tools/download.py", options, [])
    with resume_journal.locked_folder(partial, run):
        if is_new and target.is_dir() and any(target.iterdir()):
            resume_journal.remove_folder(partial)
            raise ValueError(f"{target} was written by another process meanwhile; the same command verifies it")
        if target.is_dir() and is_new:
            check_replaceable(target, partial, target)
        download_files(source, partial, wrong, title)
        if is_new:
            (partial / NOTE).parent.mkdir(exist_ok=True)
            verified += add_template(source, partial)
            values = (source.repo, source.kind, source.revision, commit)
            note_text = json.dumps(dict(zip(NOTE_KEYS, values, strict=True)), indent=2)
            (partial / NOTE).write_text(note_text + "\n", encoding="utf-8")
            partial.replace(target)
            (target / resume_journal.JOURNAL).unlink()
            return f"{target}: {verified}"
        for file in wrong:  # each replaces the existing file atomically
            (target / file.name).parent.mkdir(parents=True, exist_ok=True)
            (partial / file.name).replace(target / file.name)
        resume_journal.remove_folder(partial)
        return f"{target}: downloaded {first_names(wrong)}; complete now ({verified})"


def add_template(source: RepositorySource, folder: Path) -> str:
    """Write chat_template.jinja if a published model lacks the template of its tuning; return a phrase or ""."""
    template = template_of(source.repo) if source.kind == "model" else ""
    if not template or read_templates(folder):
        return ""
    (folder / TEMPLATE).write_text(template, encoding="utf-8")
    return f"; {TEMPLATE} added, which the model was tuned on"


def list_noted_commit(
    source: RepositorySource, target: Path, note: dict[str, str] | None
) -> tuple[str, list[RemoteFile]]:
    """List the source's files, at the commit in the note of `target` if there is one.

    Raises ValueError if the note names another repository or revision.
    """
    commit, files = list_files(source)
    if note is None:
        return commit, files
    if (note["repository"], note["kind"]) != (source.repo, source.kind):
        raise ValueError(f"{target} holds {note['repository']}, not {source.repo}; name a new folder")
    if note["commit"] == commit:
        return commit, files
    noted, other = note["commit"][:10], commit[:10]
    if note["revision"] != source.revision:
        raise ValueError(f"{target} holds {source.repo} at {noted}, not at {other}; name a new folder")
    notice(f"{source.repo} is now at {other}; {target} stays at {noted}; a new folder would get {other}")
    return list_files(replace(source, revision=note["commit"]))


def check_links(folder: Path, files: list[RemoteFile]) -> None:
    """Raise ValueError if the folder, or a subfolder of it that contains one of the files, is a link."""
    for file in files:
        for above in (folder / file.name).parents:
            if above.is_relative_to(folder) and above.is_symlink():
                raise ValueError(f"{above} is a link through which {file.name} would be written; remove it")


def missing_bytes(partial: Path, files: list[RemoteFile]) -> int:
    """Return the number of bytes still to download into the partial folder."""
    sizes = {file: (partial / file.name).stat().st_size for file in files if (partial / file.name).is_file()}
    return sum(max(0, file.size - sizes.get(file, 0)) for file in files)


def download_files(source: RepositorySource, partial: Path, files: list[RemoteFile], title: str) -> None:
    """Download the files that the partial folder lacks.

    Raises ValueError after an error and KeyboardInterrupt after Ctrl-C; the message says how much has arrived.
    """
    from huggingface_hub import errors
    from huggingface_hub.utils import build_hf_headers

    missing = mismatched_files(partial, files)
    for file in missing:
        path = partial / file.name
        if path.is_symlink() or (path.is_file() and path.stat().st_size >= file.size):
            path.unlink()
    print(f"{title}: {format_count(len(missing))}, {format_bytes(missing_bytes(partial, missing))} to download")
    headers, stopped = build_hf_headers(headers={"Accept-Encoding": "identity"}), Event()
    try:
        with ThreadPool(WORKERS) as pool:
            results = pool.imap_unordered(lambda file: (file, download_file(file, partial, headers, stopped)), missing)
            damaged = [file for file, is_good in results if not is_good]
        if damaged:
            names = first_names(damaged)
            raise ValueError(f"{format_count(len(damaged))} of {source.repo} arrived damaged ({names})")
    except (KeyboardInterrupt, errors.HTTPError, OSError, ValueError) as error:
        stopped.set()  # the threads run until the process ends, which closes their connections
        left, size = missing_bytes(partial, files), sum(file.size for file in files)
        complete = sum(not missing_bytes(partial, [file]) for file in files)
        arrived = f"{complete} of {len(files)} files, {format_bytes(size - left)} of {format_bytes(size)} have arrived"
        if left == size:
            resume_journal.remove_folder(partial)
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted: {arrived}; the same command resumes") from None
        reason = explain_hub_error(error, source) if isinstance(error, errors.HTTPError) else one_line(error)
        raise ValueError(f"{reason}; {arrived}; the same command resumes") from error
