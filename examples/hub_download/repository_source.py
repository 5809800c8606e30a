"""Describe the repository to download, and resolve the address of its hub."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from hub_download.hub_files import notice

NOTE = ".download/note.json"  # in a downloaded folder: its repository, kind, revision and commit
TIMEOUT = 60.0  # seconds to wait for the hub's API


@dataclass(frozen=True)
class RepositorySource:
    """A repository of a hub, its revision ("": the main branch), and the patterns that select files."""

    repo: str
    kind: str = "model"
    revision: str = ""
    endpoint: str = ""  # address of the hub, without a trailing slash
    pattern: tuple[str, ...] = ()  # patterns of the names to download; empty: all
    exclude: tuple[str, ...] = ()  # patterns of the names not to download

    @property
    def page(self) -> str:
        """Return the address of the repository's page."""
        return f"{self.endpoint}/{'' if self.kind == 'model' else self.kind + 's/'}{self.repo}"


def resolve_endpoint(endpoint: str) -> str:
    """Return `endpoint`, else HF_ENDPOINT, else the public hub; raises ValueError if this is not a web address.

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
        warning = ", unencrypted" if parts.scheme == "http" else ""
        notice(f"your token is sent to {address}{warning} (HF_HUB_DISABLE_IMPLICIT_TOKEN=1 prevents this)")
    return address


def valid_hash(value: object) -> str:
    """Return the value if it is a sha256 or a git object id, else ""."""
    return value if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", value) else ""
