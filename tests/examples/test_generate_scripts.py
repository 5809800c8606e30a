"""The commands generate_*.py: cases, keyboard, adapters, and errors of one line."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from chat_prompts.prompt_encoding import one_turn
from conftest import RunScript
from demo_pages import model_loading, text_generation
from demo_pages.text_generation import Decoding
from hub_server import Hub, serving

pytestmark = pytest.mark.integration


def test_pretraining_cases_are_decoded_as_published(
    tiny_checkpoint: Path, repository: Path, run_script: RunScript
) -> None:
    """All 17, with 3 beams and penalty 1.6; the first answer equals that of transformers."""
    done = run_script("examples/generate_finetune.py", "--base_model", tiny_checkpoint, "--max_new_tokens", 8)
    assert done.stdout.count("tokens in") == 17
    assert done.stdout.count("[17/17] reasoning") == 1
    case = json.loads((repository / "examples/cases/pretraining.json").read_text())["cases"][0]
    base = model_loading.load(str(tiny_checkpoint))
    ids = base.encoder.plain(case["text"])
    answer = text_generation.generate(base, ids, Decoding(8, num_beams=3, repetition_penalty=1.6))
    assert (
        f"[1/17] translation\n> {case['text']}\n{answer.text}\n  ({answer.ending}: {answer.new_tokens} tokens"
        in done.stdout
    )


def test_typed_lines_are_continued(tiny_checkpoint: Path, run_script: RunScript) -> None:
    """Greedy and streamed; an empty line is skipped, and the error of a too long one is printed."""
    done = run_script(
        "examples/generate_finetune.py", "--base_model", tiny_checkpoint, "--interactive", "--num_beams", 1,
        "--repetition_penalty", 1, "--max_new_tokens", 12, "--temperature", 0.5,
        input=f"Ann was born in\n\n{'too long ' * 600}\n山水\n",
    )  # fmt: skip
    base = model_loading.load(str(tiny_checkpoint))
    for text in ("Ann was born in", "山水"):
        ids = base.encoder.plain(text)
        assert text_generation.generate(base, ids, Decoding(12)).text in done.stdout
    assert "error: the prompt has" in done.stderr
    assert done.stderr.count("--temperature has no effect without --do_sample") == 1


def test_extraction_cases_use_the_wording_of_the_checkpoint(instructed_checkpoint: Path, run_script: RunScript) -> None:
    done = run_script(
        "examples/generate_lora.py", "--base_model", instructed_checkpoint, "--run_ie_cases", "--max_new_tokens", 6
    )
    assert done.stdout.count("tokens in") == 6
    assert "[1/6] ner (en)\n> List: person, place, organisation\n> On Monday" in done.stdout
    assert "> 抽取实体。\n" in done.stdout
    assert "> Find the relations of these kinds that the input states: works for, founded, based in." in done.stdout
    assert done.stdout.count("does not parse as JSON") == 6
    assert "chat_template" not in done.stderr


def test_adapter_answers_typed_instructions_in_its_own_template(
    tiny_checkpoint: Path, adapter: Path, run_script: RunScript
) -> None:
    arguments = ("--base_model", tiny_checkpoint, "--max_new_tokens", 10)
    done = run_script(
        "examples/generate_lora.py", *arguments, "--lora_weights", adapter, "--interactive", input="Translate.\n山水\n"
    )
    tuned = model_loading.load(str(tiny_checkpoint), str(adapter))
    ids = tuned.encoder.prompt(one_turn("Translate.", "山水"))
    assert text_generation.generate(tuned, ids, Decoding(10)).text in done.stdout
    general = run_script("examples/generate_lora.py", *arguments, "--run_general_cases", "--num_beams", 1)
    assert general.stdout.count("tokens in") == 8
    assert "has no chat template, so instructions are sent as plain text" in general.stderr


def test_demo_answers_with_names_of_base_and_adapter_as_with_folders(
    tiny_checkpoint: Path, adapter: Path, repository: Path, tmp_path: Path, run_script: RunScript
) -> None:
    """The published adapter gets its template; the second run reads the cache although the hub is gone."""
    lora = {file.name: file.read_bytes() for file in adapter.iterdir() if file.name != "chat_template.jinja"}
    hub = Hub({"some/base": {file.name: file.read_bytes() for file in tiny_checkpoint.iterdir()}})
    hub.repositories["zjunlp/zhixi-13b-lora"] = lora
    arguments = ("--base_model", "some/base", "--lora_weights", "zjunlp/zhixi-13b-lora", "--interactive")
    environment = {"XDG_CACHE_HOME": tmp_path, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "", "NO_PROXY": "127.0.0.1"}

    def ask() -> "subprocess.CompletedProcess[str]":
        return run_script(
            "examples/generate_lora.py", *arguments, "--max_new_tokens", 8, input="Translate.\n山水\n",
            env=environment | {"HF_ENDPOINT": hub.url},
        )  # fmt: skip

    with serving(hub, "hub") as hub.url:
        first = ask()
    again = ask()
    template = str(repository / "finetune/templates/alpaca.jinja")
    tuned = model_loading.load(str(tiny_checkpoint), str(adapter), template_path=template)
    answer = text_generation.generate(tuned, tuned.encoder.prompt(one_turn("Translate.", "山水")), Decoding(8)).text
    assert answer and all(answer in done.stdout and "to download" not in done.stdout for done in (first, again))
    assert f"notice: some/base is not a folder; downloading it from {hub.url} to" in first.stderr
    cached = [re.sub(r" \(commit.*", "", line) for line in again.stderr.splitlines() if line.startswith("notice")]
    assert cached == [
        f"notice: some/base is read from {tmp_path}/knowlm/models/some--base",
        f"notice: zjunlp/zhixi-13b-lora is read from {tmp_path}/knowlm/models/zjunlp--zhixi-13b-lora",
    ]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "finetune",
            ("--base_model", "none"),
            "none is not a folder; --base_model takes a folder, or OWNER/NAME or OWNER/NAME@REVISION of the hub",
        ),
        ("finetune", ("--base_model", "CHECKPOINT", "--interactiv"), "unknown option --interactiv"),
        (
            "finetune",
            ("--base_model", "CHECKPOINT", "--allocate", "[10,x]"),
            "--allocate takes a list of whole numbers",
        ),
        ("finetune", ("--base_model", "CHECKPOINT", "--num_beams", "0"), "num_beams=0 is out of range"),
        (
            "lora",
            ("--base_model", "CHECKPOINT"),
            "exactly one of --run_ie_cases, --run_general_cases and --interactive",
        ),
        ("lora", ("--base_model", "CHECKPOINT", "--run_ie_cases", "--interactive"), "exactly one of"),
        ("lora", ("--base_model", "ADAPTER", "--run_ie_cases"), "is an adapter; give it as --lora_weights"),
        (
            "lora",
            ("--base_model", "CHECKPOINT", "--lora_weights", "none", "--run_ie_cases"),
            "none is not a folder; --lora_weights takes a folder, or OWNER/NAME",
        ),
        ("lora_web", ("--base_model", "CHECKPOINT", "--language", "fr"), "--language takes one of en, zh, not 'fr'"),
        ("finetune_web", ("--base_model", "CHECKPOINT", "--server_port", "70000"), "127.0.0.1:70000 is not available"),
    ],
)
def test_bad_option_is_refused_with_one_line(
    tiny_checkpoint: Path, adapter: Path, run_script: RunScript, script: str, arguments: tuple[str, ...], message: str
) -> None:
    folders = {"CHECKPOINT": str(tiny_checkpoint), "ADAPTER": str(adapter)}
    done = run_script(f"examples/generate_{script}.py", *(folders.get(a, a) for a in arguments), status=2)
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
