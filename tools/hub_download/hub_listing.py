"""List a repository of a hub: its commit, and the selected files with sizes and hashes.

File names come from a server, so they are checked before use. Errors of the hub become ValueErrors of one line.
"""

import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from hub_download.hub_files import NOTES, RemoteFile, run_in_threads
from hub_download.hub_retry import first_line, notice, with_retries

TIMEOUT = 60.0  # seconds to wait for the hub's API
UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:")  # control characters, backslash, drive letter
REDIRECTS = 10


@dataclass(frozen=True)
class RepositorySource:
    """A repository of a hub, its revision ("": the main branch), and the patterns that select files."""

    repo: str
    kind: str = "model"
    revision: str = ""
    endpoint: str = ""  # address of the hub, without a trailing slash
    pattern: tuple[str, ...] = ()  # names to download; empty: all
    exclude: tuple[str, ...] = ()

    @property
    def page(self) -> str:
        """Return the address of the repository's page."""
        return f"{self.endpoint}/{'' if self.kind == 'model' else self.kind + 's/'}{self.repo}"


@dataclass(frozen=True)
class Listing:
    """The commit of a revision and its selected files."""

    commit: str
    files: list[RemoteFile]


def resolve_endpoint(endpoint: str) -> str:
    """Return the hub's address from the option or HF_ENDPOINT; ValueError if it is not a web address.

    Prints a notice if the token will be sent to a host other than the public hub.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    address = (endpoint or constants.ENDPOINT).rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
        raise ValueError(
            f"{address!r} is not the address of a hub; --endpoint takes https://HOST (put a token into HF_TOKEN)"
        )
    if address != "https://huggingface.co" and "authorization" in build_hf_headers():
        way = ", unencrypted" if parts.scheme == "http" else ""
        notice(f"your token is sent to {address}{way} (HF_HUB_DISABLE_IMPLICIT_TOKEN=1 keeps it here)")
    return address


def list_files(source: RepositorySource, stop: threading.Event) -> Listing:
    """Request the commit and the selected files of a revision.

    Raises ValueError if the repository, revision or file does not exist, a name is unsafe, or the hub does not answer.
    """
    from huggingface_hub import HfApi, errors, hf_hub_url

    def ask() -> Any:
        hub = HfApi(endpoint=source.endpoint)
        revision = source.revision or None
        return hub.repo_info(
            source.repo, repo_type=source.kind, revision=revision, files_metadata=True, timeout=TIMEOUT
        )

    try:
        info = with_retries(ask, source.repo, stop, errors.HfHubHTTPError)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        names = select([sibling.rfilename for sibling in info.siblings or []], source)
        check_names(names, source.repo)
        commit = known_hash(info.sha) or source.revision or "main"
        files = []
        for name in names:
            size, lfs = siblings[name].size, siblings[name].lfs
            size = size if isinstance(size, int) and size >= 0 else -1
            hash = known_hash(lfs.sha256 if lfs else siblings[name].blob_id)
            url = hf_hub_url(source.repo, name, repo_type=source.kind, revision=commit, endpoint=source.endpoint)
            files.append(RemoteFile(name, size, hash, url))
        return Listing(commit, run_in_threads(lambda file: completed(file, stop), files, stop))
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:  # OSError: offline mode
        raise ValueError(explain(error, source)) from error


def known_hash(value: object) -> str:
    """Return the value if it is a sha256 or a git object id, else ""."""
    return value if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", value) else ""


def check_names(names: list[str], repo: str) -> None:
    """Raise ValueError for the first file whose name is unsafe or not unique."""
    for name in names:
        parts = name.split("/")
        if UNSAFE.search(name) or {"", ".", ".."} & set(parts) or parts[0].lower() == NOTES:
            raise ValueError(f"{repo} has a file {name!r}, which may lead out of its folder; nothing was downloaded")
    above = {name.rsplit("/", depth)[0] for name in names for depth in range(1, name.count("/") + 1)}
    if twice := next((name for name, count in Counter(names).items() if count > 1 or name in above), ""):
        raise ValueError(f"{repo} lists {twice!r} twice, or as a file and a folder; nothing was downloaded")


def select(names: list[str], source: RepositorySource) -> list[str]:
    """Return the names that match a pattern and no exclusion (fnmatch on the whole name, so * also matches /).

    Raises ValueError if a pattern matches no name, or no name remains.
    """
    from huggingface_hub.utils import filter_repo_objects

    some = ", ".join(map(repr, names[:8])) + (", …" if len(names) > 8 else "")
    for pattern in source.pattern:
        if not list(filter_repo_objects(names, allow_patterns=pattern)):
            raise ValueError(f"--pattern {pattern!r} matches none of the {len(names)} files of {source.repo}: {some}")
    left = list(filter_repo_objects(names, allow_patterns=list(source.pattern) or None))
    kept = list(filter_repo_objects(left, ignore_patterns=list(source.exclude) or None))
    if left and not kept:
        raise ValueError(f"--exclude {','.join(source.exclude)!r} leaves none of the files of {source.repo}: {some}")
    if not kept:
        raise ValueError(f"{source.repo} has no files at this revision; correct --revision")
    return kept


def completed(file: RemoteFile, stop: threading.Event) -> RemoteFile:
    """Return the file; if a mirror's listing lacks size or hash, take them from a HEAD request."""
    from huggingface_hub import errors

    if file.size >= 0 and file.hash:
        return file
    try:
        headers = with_retries(lambda: head(file.url), file.name, stop, errors.HTTPError)
    except errors.HfHubHTTPError as error:
        if file.size >= 0 and error.response.status_code in (404, 405, 501):  # the server supports only GET
            return file
        raise
    tag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    length = headers.get("X-Linked-Size") or headers.get("Content-Length") or ""
    if file.size < 0 and not length.isdecimal():
        raise ValueError(f"the hub gives no size of {file.name}, so it could not be verified; use another --endpoint")
    size = file.size if file.size >= 0 else int(length)
    return replace(file, size=size, hash=file.hash or known_hash(tag))


def head(url: str) -> Mapping[str, str]:
    """Return the headers of a HEAD request; follows redirects on the same host only.

    The hub's own response describes the file. Other hosts are storage, which may support only GET.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    session, timeout = get_session(), constants.HF_HUB_ETAG_TIMEOUT
    headers = build_hf_headers(headers={"Accept-Encoding": "identity"})
    response = session.head(url, headers=headers, timeout=timeout, follow_redirects=False)
    for _ in range(REDIRECTS):
        following = response.next_request
        if following is None or origin(following) != origin(response.request):
            break
        response = session.send(following, follow_redirects=False)
    hf_raise_for_status(response)
    if response.next_request is not None:  # it is the length of the redirect response
        response.headers.pop("Content-Length", None)
    return response.headers


def origin(request: Any) -> tuple[str, bytes]:
    return request.url.scheme, request.url.netloc


def explain(error: Exception, source: RepositorySource) -> str:
    """Return one line with the cause and remedy of an exception of the hub client."""
    from huggingface_hub import errors

    hub, repo = source.endpoint, source.repo
    response: Any = getattr(error, "response", None)
    status = response.status_code if response is not None else 0
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} requires accepting its terms: accept them on {source.page} and set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {source.revision!r}; see {source.page}/tree/main and correct --revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{hub} has no repository {repo}, or it is private; correct --repo_name or set HF_TOKEN"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be downloaded; unset it"
    if isinstance(error, errors.HFValidationError):
        return f"{repo!r} is not a repository name ({first_line(error)}); --repo_name takes OWNER/NAME"
    if status == 401:
        return f"{hub} does not accept the token for {repo} (HTTP 401); correct HF_TOKEN, or unset it"
    if status == 403:
        return f"{hub} refuses {repo} (HTTP 403); accept its terms there, or set HF_TOKEN to a token that may read it"
    if status == 404:
        path = (response.history or [response])[0].url.path.lstrip("/")
        return f"{hub} has no {path} (HTTP 404); try another --endpoint or --revision"
    if status:
        return f"{hub} does not deliver {repo} (HTTP {status}); try again later, or another --endpoint"
    return f"{hub} does not answer ({first_line(error)}); check the network, or set HF_ENDPOINT to a mirror"
