"""Fixtures of the tools' tests: tools run in this process, an adapter, small models, llama.cpp's server, a hub."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import convert_llama
import download
import editing_bed
import pytest
import torch
from changed_weights import nudged, variant
from conftest import small_texts
from hub_download import hub_files
from hub_server import CHUNK, DIFF, LORA, Hub, serving
from huggingface_hub import file_download
from in_process import RunTool, run_in_process
from llama_cpp_server import Ask, Make, Serve, started, write_model
from merged_adapters import MakeAdapter, write_adapter
from original_llama import TINY, State, random_state, write_original, write_ranks_table
from original_llama import Make as MakeOriginal
from safetensors.torch import load_file
from tokenizer_files import llama_tokenizer

Got = tuple[str, str]  # stdout, stderr
Get = Callable[..., Got]


@pytest.fixture(scope="session")
def run_tool() -> RunTool:
    return run_in_process


@pytest.fixture(scope="session")
def tuned(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tiny checkpoint with changed weights and every file that a tuned folder may have."""
    folder = variant(
        tiny_checkpoint,
        tmp_path_factory.mktemp("tuned") / "tuned",
        nudged(load_file(tiny_checkpoint / "model.safetensors")),
    )
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (folder / "extraction.json").write_text('{"tasks": {}}')
    (folder / "run.json").write_text('{"script": "pretrain/train.py"}')
    return folder


@pytest.fixture(scope="session")
def small_bed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of editing_bed.py with a model that knows 24 facts; tests must not write into it."""
    folder = tmp_path_factory.mktemp("beds") / "bed"
    editing_bed.main(
        str(folder), facts=24, steps=200, batch=24, width=64, layers=2, d_ff=128, vocab_size=640, learning_rate=8e-3
    )
    return folder


@pytest.fixture(scope="session")
def adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random LoRA adapter of the tiny checkpoint, with its tokenizer and a template."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    torch.manual_seed(5)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_checkpoint),
        LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    model.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return folder


@pytest.fixture(scope="session")
def make_adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeAdapter:
    """Return make_adapter(**LoraConfig options) -> a random adapter's folder and the base merged with it by PEFT."""
    return lambda **options: write_adapter(tiny_checkpoint, tmp_path_factory.mktemp("adapter") / "adapter", **options)


@pytest.fixture
def make(tiny_tokenizer: Path, tmp_path: Path) -> Make:
    """Return make(configuration class, setting=…), which writes the folder "model": random weights, a tokenizer."""
    return lambda kind="LlamaConfig", **settings: write_model(tmp_path / "model", tiny_tokenizer, kind, **settings)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return serve(GGUF file), which starts llama.cpp's server and returns ask(path, body); skip without xllamacpp."""
    llama, servers = pytest.importorskip("xllamacpp"), []

    def asking(file: Path) -> Ask:
        server, ask = started(llama, file)
        servers.append(server)
        return ask

    yield asking
    servers.clear()


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub({"zjunlp/zhixi-13b-diff-fp16": DIFF, "zjunlp/zhixi-13b-lora": LORA, "some/thing": dict(DIFF)})
    with serving(made, "hub") as made.url:
        yield made


@pytest.fixture(scope="module")
def hub_client() -> Iterator[None]:
    """Let the hub client connect to servers on this machine; the client reads its environment only once."""
    from huggingface_hub import close_session, constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        patch.setattr(hub_files, "FIRST_PAUSE", 0.001)
        patch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
        patch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))  # before reconnecting
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
        close_session()
        yield
        close_session()


@pytest.fixture
def get(hub: Hub, hub_client: None, capsys: pytest.CaptureFixture[str]) -> Get:
    """Return get(folder, pattern="*.json", …), which downloads some/thing from `hub` in this process."""

    def run(folder: Path, **options: object) -> Got:
        arguments: dict[str, Any] = {"specify": True, "repo_name": "some/thing", "endpoint": hub.url} | options
        texts = {name: arguments[name] for name in ("pattern", "exclude") if isinstance(arguments.get(name), str)}
        patterns = {name: tuple(one.strip() for one in text.split(",") if one.strip()) for name, text in texts.items()}
        download.main(str(folder), **arguments | patterns)
        output = capsys.readouterr()
        return output.out, output.err

    return run


@pytest.fixture(scope="session")
def few_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(small_texts(20)))
    return path


@pytest.fixture(scope="session")
def ranks_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tokenizer.model in LLaMA-3's format: the 256 bytes and the 300 most frequent merges of a small text."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    draft = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(llama_tokenizer.PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    draft.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    draft.train_from_iterator(
        small_texts(), trainers.BpeTrainer(vocab_size=556, initial_alphabet=alphabet, show_progress=False)
    )
    values = {letter: value for value, letter in bytes_to_unicode().items()}
    pieces = sorted(draft.get_vocab().items(), key=lambda item: item[1])
    tokens = [bytes(values[letter] for letter in piece) for piece, _ in pieces]
    return write_ranks_table(tmp_path_factory.mktemp("ranks") / "tokenizer.model", tokens)


@pytest.fixture
def original(tmp_path: Path, tiny_tokenizer: Path, ranks_table: Path) -> MakeOriginal:
    """Return original(params, dtype, ranks, …) -> an original checkpoint's folder and its joined weights."""

    def make(
        params: dict[str, Any] = TINY,
        dtype: torch.dtype = torch.float16,
        ranks: int = 2,
        tie: bool = False,
        name: str = "in",
    ) -> tuple[Path, State]:
        three = "rope_theta" in params
        rows = 556 + 256 if three else 800
        state = random_state(params, rows, dtype)
        if tie:
            state["output.weight"] = state["tok_embeddings.weight"]
        tokenizer = ranks_table if three else tiny_tokenizer / "tokenizer.model"
        folder = write_original(tmp_path / name, params, state, tokenizer, ranks, 0 if three else 1)
        return folder, state

    return make


@pytest.fixture
def convert(tmp_path: Path, few_texts: Path) -> Callable[..., Path]:
    """Return convert(folder, **options), which runs convert_llama in this process and returns the new folder."""

    def run(folder: Path, name: str = "out", **options: object) -> Path:
        given: dict[str, Any] = {"model_size": "auto", "check_path": str(few_texts)} | options
        convert_llama.main(input_dir=str(folder), output_dir=str(tmp_path / name), **given)
        return tmp_path / name

    return run
