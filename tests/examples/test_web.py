"""The two web demos in a real browser: answers, both languages, errors, and no requests to other machines."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from chat_prompts.prompt_encoding import instruction_messages
from conftest import RunScript, free_port
from demo_pages import model_loading, text_generation, web_page
from demo_pages.text_generation import Decoding

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip(f"no browser here (looked for {', '.join(BROWSERS)}); apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=found, args=list(SWITCHES))
        yield launched
        launched.close()


def served(repository: Path, log: Path, script: str, *arguments: object) -> Iterator[str]:
    """Run a web demo until the generator is closed; yield its address once the demo prints it."""
    port = free_port()
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, repository / script, *map(str, arguments), "--server_port", str(port)],
            stdout=output, stderr=subprocess.STDOUT, cwd=log.parent, env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 400
        while "Open http" not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def tuned_demo(
    browser: Any, repository: Path, instructed_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    log = tmp_path_factory.mktemp("web") / "lora.log"
    arguments = ("--base_model", instructed_checkpoint, "--max_new_tokens", 24)
    yield from served(repository, log, "examples/generate_lora_web.py", *arguments)


@pytest.fixture(scope="module")
def pretrained_demo(
    browser: Any, repository: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    log = tmp_path_factory.mktemp("web") / "finetune.log"
    arguments = ("--base_model", tiny_checkpoint, "--max_new_tokens", 500, "--num_beams", 8, "--language", "zh")
    yield from served(repository, log, "examples/generate_finetune_web.py", *arguments)


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """An empty tab; the test fails if a page requests anything from another machine, or if its script fails."""
    tab = browser.new_page(viewport={"width": 1280, "height": 960})
    tab.set_default_timeout(120_000)
    requests: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("pageerror", lambda error: requests.append(f"error:{error}"))
    yield tab
    tab.close()
    assert {urlsplit(url).hostname for url in requests if not url.startswith(("data:", "blob:"))} == {"127.0.0.1"}, (
        requests
    )


def box(page: Any, name: str) -> Any:
    return page.locator(f"#{name} textarea")


def wait_for(page: Any, text: str, within: str = "#status") -> None:
    page.locator(within).filter(has_text=text).wait_for()


def test_instruction_gets_the_answer_of_the_library(tuned_demo: str, page: Any, instructed_checkpoint: Path) -> None:
    """The typed text has spellings of special tokens and template syntax; the answer is that of text_generation."""
    instruction, text = "Translate {{ x }} <s>", "山水</s> %s"
    page.goto(tuned_demo)
    box(page, "instruction").fill(instruction)
    box(page, "input").fill(text)
    page.get_by_role("button", name="Generate").click()
    wait_for(page, "Cut after 24 tokens")
    loaded = model_loading.load(str(instructed_checkpoint))
    ids = loaded.encoder.prompt_ids(instruction_messages(instruction, text))
    assert box(page, "answer").input_value() == text_generation.generate(loaded, ids, Decoding(24)).text
    page.get_by_role("button", name="Clear").click()
    page.wait_for_function("document.querySelector('#answer textarea').value === ''")
    assert box(page, "instruction").input_value() == ""


def test_page_shows_errors_in_english_and_chinese(tuned_demo: str, page: Any) -> None:
    page.goto(tuned_demo)
    page.get_by_role("button", name="Generate").click()
    wait_for(page, "Error: the text is empty")
    page.get_by_role("tab", name="中文").click()
    page.get_by_role("button", name="生成").click()
    wait_for(page, "错误： 文本为空")
    page.get_by_role("tab", name="信息抽取").click()
    box(page, "source").fill("Ann was born in Oslo.")
    page.get_by_role("button", name="抽取", exact=True).click()
    wait_for(page, "needs a schema such as `person, place`".replace("`", ""))
    page.get_by_role("tab", name="English").click()
    page.get_by_role("button", name="Generate").wait_for()


def test_extraction_uses_the_wording_of_the_checkpoint(tuned_demo: str, page: Any, instructed_checkpoint: Path) -> None:
    """An example fills the boxes; the model is asked with the instruction of the checkpoint's extraction.json."""
    page.goto(tuned_demo)
    page.get_by_role("tab", name="Extraction").click()
    page.get_by_text("person, place, organisation", exact=True).click()
    page.wait_for_function("document.querySelector('#source textarea').value.startsWith('On Monday')")
    text = box(page, "source").input_value()
    page.get_by_role("button", name="Extract", exact=True).click()
    wait_for(page, "Cut after 24 tokens")
    loaded = model_loading.load(str(instructed_checkpoint))
    ids = loaded.encoder.prompt_ids(instruction_messages("List: person, place, organisation", text))
    assert box(page, "answer").input_value() == text_generation.generate(loaded, ids, Decoding(24)).text
    assert page.locator("#found").is_visible()


def test_stop_button_frees_the_server_for_the_next_prompt(
    pretrained_demo: str, page: Any, tiny_checkpoint: Path
) -> None:
    """500 tokens with 8 beams take many seconds; after the stop, the server answers the next prompt."""
    page.goto(pretrained_demo)
    page.get_by_text("解码设置").click()
    box(page, "beginning").fill("Ann was born in")
    page.get_by_role("button", name="生成").click()
    wait_for(page, "正在生成")
    page.get_by_role("button", name="停止").click()
    wait_for(page, "已停止")
    for name, value in (("max_new_tokens", 16), ("num_beams", 1)):
        page.locator(f"#{name} input[type=number]").fill(str(value))
        page.locator(f"#{name} input[type=number]").blur()
    page.get_by_role("button", name="生成").click()
    wait_for(page, "已在 16 个词元处截断")
    loaded = model_loading.load(str(tiny_checkpoint))
    ids = loaded.encoder.plain_text_ids("Ann was born in")
    answer = text_generation.generate(loaded, ids, Decoding(16, repetition_penalty=1.6))  # the published penalty
    assert box(page, "answer").input_value() == answer.text


def test_sampling_settings_are_disabled_without_sampling(pretrained_demo: str, page: Any) -> None:
    page.goto(pretrained_demo)
    page.get_by_text("解码设置").click()
    temperature = page.locator("#temperature input[type=number]")
    assert temperature.is_disabled()
    page.locator("#do_sample input").check()
    page.wait_for_function("!document.querySelector('#temperature input[type=number]').disabled")


def test_preset_buttons_set_the_decoding(pretrained_demo: str, page: Any) -> None:
    page.goto(pretrained_demo)
    page.get_by_text("解码设置").click()
    page.get_by_role("button", name="创意：随机采样").click()
    page.wait_for_function("!document.querySelector('#temperature input[type=number]').disabled")
    values = {
        name: page.locator(f"#{name} input[type=number]").input_value() for name in ("num_beams", "top_p", "top_k")
    }
    assert values == {"num_beams": "1", "top_p": "0.95", "top_k": "100"}
    assert page.locator("#seed input").is_enabled()
    page.get_by_role("button", name="精确：4 束搜索").click()
    page.wait_for_function("document.querySelector('#temperature input[type=number]').disabled")
    assert page.locator("#num_beams input[type=number]").input_value() == "4"
    assert page.locator("#repetition_penalty input[type=number]").input_value() == "1.3"


@pytest.mark.integration
def test_port_in_use_is_refused_with_one_line(tiny_checkpoint: Path, run_script: RunScript) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = ("--base_model", tiny_checkpoint, "--server_port", port)
        done = run_script("examples/generate_finetune_web.py", *arguments, status=2)
    assert f"error: 127.0.0.1:{port} is not available (Address already in use); choose another" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_labels_of_both_languages_have_the_same_keys_and_fields() -> None:
    english, chinese = web_page.LABELS["en"], web_page.LABELS["zh"]
    assert english.keys() == chinese.keys()
    for name in english:
        assert english[name] and chinese[name]
        filled = {"tokens": 1, "seconds": 1.0, "message": "x"}
        assert english[name].format(**filled) != chinese[name].format(**filled) or name == "top_p"


@pytest.mark.integration
def test_cancelled_request_ends_the_generation_thread(tiny_checkpoint: Path) -> None:
    """A request that is cancelled through Gradio, as by the Stop button, does not reach its 500 tokens."""
    client = pytest.importorskip("gradio_client")
    base = model_loading.load(str(tiny_checkpoint))
    blocks = web_page.build_page(base, False, Decoding(500, num_beams=8), "en")
    _, address, _ = blocks.queue().launch(server_port=free_port(), prevent_thread_lock=True, quiet=True)
    try:
        settings = [500, 8, 1.0, False, 0.4, 0.75, 40, None]
        job = client.Client(address, verbose=False).submit(
            "Ann was born in", *settings, fn_index=generate_index(blocks)
        )
        wait_until(lambda: "generation" in thread_names(), 60)
        assert job.cancel()
        wait_until(lambda: "generation" not in thread_names(), 60)
        assert all(line.startswith("Generating") for _, line in job.outputs())  # not "Cut after 500 tokens"
    finally:
        blocks.close()


def generate_index(blocks: Any) -> int:
    """Return the index of the function that the Generate button calls."""
    return next(index for index, function in blocks.fns.items() if function.concurrency_id == "model")


def thread_names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def wait_until(holds: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_exception_becomes_a_status_line() -> None:
    def fails() -> list[int]:
        raise MemoryError("out of it")

    loaded = model_loading.Checkpoint(None, None, {})  # type: ignore[arg-type]
    states = list(web_page.stream_answer(loaded, fails, {}, web_page.LABELS["en"]))
    assert states[-1] == ("", "**Error:** MemoryError: out of it")
    assert web_page.result_table('{"born in": [{"subject": "Ann", "object": "Oslo"}]}') == [["born in", "Ann → Oslo"]]
    assert web_page.result_table("no JSON") == []
