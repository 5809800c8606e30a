"""List a repository of a hub or mirror: its commit, and the selected files with sizes and hashes.

File names come from a server, so they are checked before use. Errors of the hub become ValueErrors with
one-line messages.
"""

import re
from dataclasses import replace
from json import JSONDecodeError
from typing import Any

from hub_download.hub_files import RemoteFile, first_line, with_retries
from hub_download.modelscope_listing import list_modelscope
from hub_download.repository_source import NOTE, TIMEOUT, RepositorySource, valid_hash

UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:")  # control characters, backslash, drive letter


def list_files(source: RepositorySource) -> tuple[str, list[RemoteFile]]:
    """Request the commit and the selected files of a revision.

    Raises ValueError if the repository, revision or file does not exist, a name is unsafe, or the hub does not answer.
    """
    from huggingface_hub import errors

    try:
        commit, listed = request_listing(source)
        files = {file.name: file for file in listed}
        names = select_files(list(files), source)
        check_names(names, source.repo)
        return commit, [add_missing_metadata(files[name]) for name in names]
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:  # OSError: offline mode
        raise ValueError(explain_hub_error(error, source)) from error


def request_listing(source: RepositorySource) -> tuple[str, list[RemoteFile]]:
    """Return commit and all files, from the hub's API or, if the endpoint does not have it, from ModelScope's."""
    from huggingface_hub import HfApi, errors, hf_hub_url

    def request() -> Any:
        return HfApi(endpoint=source.endpoint).repo_info(
            source.repo, repo_type=source.kind, revision=source.revision or None, files_metadata=True, timeout=TIMEOUT
        )

    try:
        info = with_retries(request, source.repo, errors.HfHubHTTPError)
    except (errors.HfHubHTTPError, JSONDecodeError) as error:
        response = getattr(error, "response", None)
        is_hub = response is not None and (response.status_code >= 500 or "X-Error-Code" in response.headers)
        if not is_hub and (found := list_modelscope(source)):
            return found
        if response is None:
            raise ValueError(f"{source.endpoint} is not a hub: its answer is not JSON; correct the endpoint") from None
        raise
    commit = valid_hash(info.sha) or source.revision or "main"
    files = []
    for sibling in info.siblings or []:
        size, hash = sibling.size, valid_hash(sibling.lfs.sha256 if sibling.lfs else sibling.blob_id)
        url = hf_hub_url(
            source.repo, sibling.rfilename, repo_type=source.kind, revision=commit, endpoint=source.endpoint
        )
        size = size if isinstance(size, int) and size >= 0 else -1
        files.append(RemoteFile(sibling.rfilename, size, hash, url))
    return commit, files


def check_names(names: list[str], repo: str) -> None:
    """Raise ValueError for the first file whose name is unsafe."""
    for name in names:
        parts = name.split("/")
        if UNSAFE.search(name) or {"", ".", ".."} & set(parts) or parts[0].lower() == NOTE.split("/")[0]:
            raise ValueError(f"{repo} has a file {name!r}, which is an unsafe file name; nothing was downloaded")


def select_files(names: list[str], source: RepositorySource) -> list[str]:
    """Return the names that match a pattern and no exclusion (fnmatch on the whole name, so * also matches /).

    Raises ValueError if a pattern matches no name, or no name remains.
    """
    from huggingface_hub.utils import filter_repo_objects

    some = ", ".join(map(repr, names[:8])) + (", …" if len(names) > 8 else "")
    for pattern in source.pattern:
        if not list(filter_repo_objects(names, allow_patterns=pattern)):
            raise ValueError(f"--pattern {pattern!r} matches none of the {len(names)} files of {source.repo}: {some}")
    matching = list(filter_repo_objects(names, allow_patterns=list(source.pattern) or None))
    kept = list(filter_repo_objects(matching, ignore_patterns=list(source.exclude) or None))
    if matching and not kept:
        raise ValueError(f"--exclude {','.join(source.exclude)!r} leaves none of the files of {source.repo}: {some}")
    if not kept:
        raise ValueError(f"{source.repo} has no files at this revision; correct the revision")
    return kept


def add_missing_metadata(file: RemoteFile) -> RemoteFile:
    """Return the file with size and hash; values missing from the listing are read with a HEAD request."""
    from huggingface_hub import get_hf_file_metadata

    if file.size >= 0 and file.hash:
        return file
    metadata = get_hf_file_metadata(file.url, retry_on_errors=True)
    size = file.size if file.size >= 0 else metadata.size
    if size is None:
        raise ValueError(f"the hub gives no size of {file.name}, so it could not be verified; use another endpoint")
    return replace(file, size=size, hash=file.hash or valid_hash(metadata.etag))


def explain_hub_error(error: Exception, source: RepositorySource) -> str:
    """Return one line with the cause and remedy of an exception of the hub client."""
    from huggingface_hub import errors

    hub, repo = source.endpoint, source.repo
    response: Any = getattr(error, "response", None)
    status = response.status_code if response is not None else 0
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} requires accepting its terms: accept them on {source.page} and set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {source.revision!r}; see {source.page}/tree/main and correct the revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{hub} has no repository {repo}, or it is private; correct the name or set HF_TOKEN"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be downloaded; unset it"
    if isinstance(error, errors.HFValidationError):
        return f"{repo!r} is not a repository name ({first_line(error)}); it takes the form OWNER/NAME"
    if status == 401:
        return f"{hub} does not accept the token for {repo} (HTTP 401); correct HF_TOKEN, or unset it"
    if status == 403:
        return f"{hub} refuses {repo} (HTTP 403); accept its terms there, or set HF_TOKEN to a token that may read it"
    if status == 404:
        path = (response.history or [response])[0].url.path.lstrip("/")
        return f"{hub} has no {path} (HTTP 404); try another endpoint or revision"
    if status:
        return f"{hub} does not deliver {repo} (HTTP {status}); try again later, or another endpoint"
    return f"{hub} does not answer ({first_line(error)}); check the network, or set HF_ENDPOINT to a mirror"
