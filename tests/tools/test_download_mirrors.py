"""tools/download.py with various hubs: rate limits, refusals, mirrors without hashes, storage on another host."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_download import hub_files
from hub_server import API, CHUNK, DIFF, Fault, Hub, downloaded, serving

Get = Callable[..., tuple[str, str]]
LARGE = "model.safetensors"
BYTES = DIFF[LARGE]


@pytest.mark.integration
def test_rate_limited_request_is_repeated_after_pause(
    hub: Hub, get: Get, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limit = Fault(status=429, headers={"Retry-After": "1"})
    hub.faults[API], hub.faults["config.json"] = [limit], [limit]
    start = time.monotonic()
    _, err = get(tmp_path / "thing")
    assert time.monotonic() - start >= 2
    assert "notice: some/thing: HTTP 429; retrying in 1 s" in err
    assert "Rate limited. Waiting 2.0s before retry" in caplog.text  # one second more than the hub requests
    assert downloaded(tmp_path / "thing") == DIFF


def test_requested_pause_reads_retry_after_and_rate_limit() -> None:
    for headers, seconds in [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "0", "RateLimit": '"api";r=0;t=55'}, 0),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"RateLimit": '"api";r=9;t=55'}, 0),
        ({"Retry-After": "soon"}, 0),
        ({}, 0),
    ]:
        assert hub_files.requested_pause(headers) == seconds, headers


@pytest.mark.parametrize("status", [500, 502, 503, 524])
def test_busy_hub_is_retried(hub: Hub, get: Get, tmp_path: Path, status: int) -> None:
    hub.faults[API] = [Fault(status=status)] * 2
    hub.faults["config.json"] = [Fault(status=status)] * 2
    _, err = get(tmp_path / "thing")
    assert err.count(f"HTTP {status}; retrying in 0 s") == 4
    assert downloaded(tmp_path / "thing") == DIFF


def test_hub_that_stays_busy_ends_run(hub: Hub, get: Get, tmp_path: Path) -> None:
    hub.faults[LARGE] = [Fault(status=503)] * hub_files.ATTEMPTS
    with pytest.raises(ValueError, match=r"does not deliver some/thing \(HTTP 503\); .*; \d of 3 files.* resumes"):
        get(tmp_path / "thing")
    assert [request for request in hub.requests if request[0] == LARGE] == [(LARGE, "")] * hub_files.ATTEMPTS
    hub.faults[API] = [Fault(status=503)] * hub_files.ATTEMPTS
    with pytest.raises(ValueError, match=r"does not deliver some/thing \(HTTP 503\); try again later"):
        get(tmp_path / "thing")


GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(status=401), r"does not accept the token for some/thing \(HTTP 401\); correct HF_TOKEN, or unset it"),
        (Fault(status=403), r"refuses some/thing \(HTTP 403\); accept its terms there, or set HF_TOKEN"),
        (
            Fault(status=403, headers=GATED),
            "some/thing requires accepting its terms: accept them on http://127.*HF_TO",
        ),
        (Fault(status=404), r"has no .* \(HTTP 404\); try another endpoint or revision"),
    ],
)
@pytest.mark.parametrize("place", [API, LARGE])
def test_refusals_are_not_repeated(hub: Hub, get: Get, tmp_path: Path, fault: Fault, message: str, place: str) -> None:
    hub.faults[place] = [fault]
    with pytest.raises(ValueError, match=message) as error:
        get(tmp_path / "thing", pattern=LARGE)
    assert "\n" not in str(error.value)
    assert len(hub.requests) == (place == LARGE)
    assert not list(tmp_path.iterdir())  # nothing arrived, so nothing is kept


def test_full_disk_stops_run_and_keeps_received_files(
    hub: Hub, get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, limits[1]))
    try:
        with pytest.raises(
            ValueError,
            match=r"\(File too large\); make room, .*; 0 of 1 files, 0.7. MB of 1.05 MB have arrived; the same c",
        ):
            get(tmp_path / "thing", pattern=LARGE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    get(tmp_path / "thing", pattern=LARGE)
    assert hub.requests[-1] == (LARGE, "bytes=700000-")
    assert downloaded(tmp_path / "thing") == {LARGE: BYTES}


@pytest.fixture
def storage(hub: Hub) -> Iterator[str]:
    with serving(hub, "storage") as hub.storage:
        yield hub.storage


def test_token_is_sent_to_hub_and_not_to_storage(
    hub: Hub, storage: str, get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.faults[LARGE] = [Fault(cut=300_000)]
    hub.hashes = False  # so that HEAD requests are sent, too
    _, err = get(tmp_path / "thing")
    assert f"notice: your token is sent to {hub.url}, unencrypted" in err
    assert hub.tokens == {"hub": {"Bearer hf_secret"}, "storage": {""}}
    assert "secret" not in err
    ranges = [range_header for name, range_header in hub.requests if name == LARGE]
    assert ranges == ["", f"bytes={4 * CHUNK}-"]  # range headers are kept in redirects
    assert downloaded(tmp_path / "thing") == DIFF


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("sizes", [True, False])
def test_listing_without_hashes_is_completed_from_headers(
    hub: Hub, get: Get, tmp_path: Path, elsewhere: bool, sizes: bool, request: pytest.FixtureRequest
) -> None:
    if elsewhere:
        request.getfixturevalue("storage")
    hub.hashes, hub.sizes = False, sizes
    hub.faults[LARGE] = [Fault(wrong=True)]
    out, err = get(tmp_path / "thing")
    assert f"{LARGE} arrived damaged" in err
    assert "every hash as published" in out
    assert downloaded(tmp_path / "thing") == DIFF


def test_without_hashes_only_sizes_are_checked(hub: Hub, get: Get, tmp_path: Path) -> None:
    hub.hashes = hub.tags = False
    hub.faults[LARGE] = [Fault(body=b"short")]
    out, err = get(tmp_path / "thing")
    assert f"{LARGE} arrived damaged: its size or hash is not as published" in err
    assert "only the sizes of 3 files could be checked, since no hashes are published" in out
    assert downloaded(tmp_path / "thing") == DIFF
    (tmp_path / "thing/config.json").unlink()
    get(tmp_path / "thing")
    assert downloaded(tmp_path / "thing") == DIFF


def test_mirror_without_sizes_is_refused(hub: Hub, get: Get, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    hub.hashes = hub.sizes = hub.heads = False
    with pytest.raises(ValueError, match=r"does not deliver some/thing \(HTTP 405\)"):
        get(tmp_path / "thing")
    hub.heads, hub.linked_sizes = True, False
    request.getfixturevalue("storage")
    with pytest.raises(
        ValueError, match=r"the hub gives no size of .*, so it could not be verified; use another endpoint"
    ):
        get(tmp_path / "thing")
    assert not list(tmp_path.iterdir())


def test_folder_from_one_endpoint_is_repaired_from_another(hub: Hub, get: Get, tmp_path: Path) -> None:
    get(tmp_path / "thing")
    (tmp_path / "thing/config.json").unlink()
    mirror = Hub(hub.repositories)
    with serving(mirror, "hub") as address:
        get(tmp_path / "thing", endpoint=address + "/")
    assert mirror.requests == [("config.json", "")]
    assert downloaded(tmp_path / "thing") == DIFF


@pytest.mark.parametrize("status", [404, 200])  # status of the answer to a request of the hub's API
def test_modelscope_mirror_is_recognised_and_resumed_within_file(
    hub: Hub, get: Get, tmp_path: Path, status: int
) -> None:
    hub.modelscope = status
    hub.faults[LARGE] = [Fault(cut=3 * CHUNK + 1)]
    target = tmp_path / "thing"
    out, _ = get(target)
    assert out.splitlines()[-1].endswith("some/thing at 0123456789, 3 files, 1.05 MB, every hash as published")
    assert downloaded(target) == DIFF
    assert [request for request in hub.requests if request[0] == LARGE] == [(LARGE, ""), (LARGE, f"bytes={3 * CHUNK}-")]
    (target / LARGE).write_bytes(BYTES[:-1] + b"x")  # the same size
    assert f"downloaded {LARGE}; complete now" in get(target)[0]
    assert downloaded(target) == DIFF


@pytest.mark.integration
def test_modelscope_dataset_is_listed_in_pages(hub: Hub, get: Get, tmp_path: Path) -> None:
    hub.modelscope = 404
    rows = {f"part {number}.jsonl": b"{}\n" * (number + 1) for number in range(401)}  # three pages
    hub.repositories["datasets/some/rows"] = rows
    get(tmp_path / "rows", repo_name="some/rows", repo_type="dataset", revision="v1")
    assert downloaded(tmp_path / "rows") == rows


def test_modelscope_mirror_gives_reason_of_refusal(hub: Hub, get: Get, tmp_path: Path) -> None:
    hub.modelscope = 404
    for options in ({"repo_name": "some/none"}, {"revision": "none"}):
        with pytest.raises(ValueError, match=r"does not list some/\w+ at '\w+' \(not found\); correct the name or"):
            get(tmp_path / "x", **options)
    hub.repositories["some/thing"] = {f"{number}": b"" for number in range(3000)}
    with pytest.raises(ValueError, match="lists at most 3000 entries, and some/thing may have more; use another hub"):
        get(tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("status", "message"), [(200, "is not a hub: its answer is not JSON"), (404, r"has no blog/api/.*404")]
)
def test_address_that_is_not_a_hub_is_refused(
    hub: Hub, get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, message: str
) -> None:
    hub.modelscope = status
    with pytest.raises(ValueError, match=message):
        get(tmp_path / "x", endpoint=f"{hub.url}/blog")
