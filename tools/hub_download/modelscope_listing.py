"""List a repository of a mirror that has ModelScope's API instead of the hub's.

    GET /api/v1/models/OWNER/NAME/repo/files?Revision=master&Recursive=True    {"Code": 200, "Data": {"Files": […]}}
    GET /api/v1/datasets/OWNER/NAME/repo/tree?…&PageNumber=1&PageSize=200      the same, in pages
    GET /api/v1/models/OWNER/NAME/repo?Revision=master&FilePath=config.json    a file; supports Range

An entry of Files has Path, Size (bytes), Sha256, Type ("blob" or "tree"), Revision (the commit that changed it last)
and CommittedDate. Source: the packages modelscope 1.40 and modelscope_hub 0.5.
"""

from functools import partial
from typing import Any
from urllib.parse import quote_plus

from hub_download.hub_files import RETRIED_STATUSES, RemoteFile, with_retries
from hub_download.repository_source import TIMEOUT, RepositorySource, valid_hash

SEGMENTS = {"model": "models", "dataset": "datasets", "space": "studios"}
LISTING_LIMIT = 3000  # entries; the server truncates longer listings of models without reporting it
PAGE_SIZE = 200  # entries per page of a data set's listing


def list_modelscope(source: RepositorySource) -> tuple[str, list[RemoteFile]] | None:
    """Return the newest commit and all files of a repository; None if the mirror does not have this API.

    Raises ValueError if the mirror refuses, HfHubHTTPError if it stays busy.
    """
    revision = source.revision or "master"
    address = f"{source.endpoint}/api/v1/{SEGMENTS[source.kind]}/{source.repo}/repo"
    entries = list_entries(source, address, revision)
    if entries is None:
        return None
    blobs = [entry for entry in entries if entry.get("Type") != "tree"]
    newest = max(blobs, key=lambda entry: entry.get("CommittedDate") or 0, default={})
    files = []
    for entry in blobs:
        url = f"{address}?Revision={quote_plus(revision)}&FilePath={quote_plus(entry['Path'])}"
        files.append(RemoteFile(entry["Path"], entry.get("Size", -1), valid_hash(entry.get("Sha256")), url))
    return valid_hash(newest.get("Revision")) or revision, files


def list_entries(source: RepositorySource, address: str, revision: str) -> list[dict[str, Any]] | None:
    """Return all entries of a listing; None if the mirror does not have this API.

    Raises the errors of `list_modelscope`.
    """
    from huggingface_hub.errors import HfHubHTTPError

    in_pages, entries = source.kind == "dataset", list[dict[str, Any]]()
    listing = f"{address}/{'tree' if in_pages else 'files'}"
    while True:
        parameters: dict[str, str | int] = {"Revision": revision, "Recursive": "True"}
        if in_pages:
            parameters |= {"PageNumber": len(entries) // PAGE_SIZE + 1, "PageSize": PAGE_SIZE}
        content = with_retries(partial(request_object, listing, parameters), source.repo, HfHubHTTPError)
        if "Code" not in content:
            return None
        if content["Code"] != 200:
            raise ValueError(
                f"{source.endpoint} does not list {source.repo} at {revision!r} ({content.get('Message')}); correct "
                "the name or the revision, or set HF_TOKEN if it is private"
            )
        page = content["Data"]["Files"]
        entries += page
        if not in_pages and len(entries) >= LISTING_LIMIT:
            raise ValueError(
                f"{source.endpoint} lists at most {LISTING_LIMIT} entries, and {source.repo} may have more; "
                "use another hub"
            )
        if not in_pages or len(page) < PAGE_SIZE:
            return entries


def request_object(address: str, parameters: dict[str, str | int]) -> dict[str, Any]:
    """Return the JSON object at an address, {} for any other content; raises HfHubHTTPError on temporary errors."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    response = get_session().get(address, params=parameters, headers=build_hf_headers(), timeout=TIMEOUT)
    if response.status_code in RETRIED_STATUSES:
        hf_raise_for_status(response)
    try:
        content = response.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
