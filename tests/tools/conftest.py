"""What the tests of the tools share: a tool run in this process, an adapter, small models, llama.cpp, a hub."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import download
import hub_waiting
import pytest
from gguf_files import Ask, Make, Serve, started, write_model
from hub_server import DIFF, LORA, Hub, serving
from in_process import RunTool, run_in_process

Got = tuple[str, str]  # stdout, stderr
Get = Callable[..., Got]


@pytest.fixture(scope="session")
def run_tool() -> RunTool:
    return run_in_process


@pytest.fixture(scope="session")
def adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LoRA adapter of the tiny checkpoint, with its tokenizer and a template."""
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


@pytest.fixture
def make(tiny_tokenizer: Path, tmp_path: Path) -> Make:
    """make(class name of a configuration, setting=…): the folder "model" with random weights and a tokenizer."""
    return lambda kind="LlamaConfig", **settings: write_model(tmp_path / "model", tiny_tokenizer, kind, **settings)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """serve(GGUF file): a function that asks llama.cpp's server by path and body; without xllamacpp the test skips."""
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
    """The hub client, allowed to talk to servers on this machine; it reads its surroundings once."""
    from huggingface_hub import close_session, constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        patch.setattr(hub_waiting, "FIRST_PAUSE", 0.001)
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
        close_session()
        yield
        close_session()


@pytest.fixture
def get(hub: Hub, hub_client: None, capsys: pytest.CaptureFixture[str]) -> Get:
    """get(folder, pattern="*.json", …): the download of some/thing from the hub above, in this process."""

    def run(folder: Path, **options: object) -> Got:
        asked: dict[str, Any] = {"specify": True, "repo_name": "some/thing", "endpoint": hub.url} | options
        download.main(str(folder), **asked)
        said = capsys.readouterr()
        return said.out, said.err

    return run
