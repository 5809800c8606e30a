"""The commands generate_*.py: cases, keyboard, adapters, and errors of one line."""

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from chat_prompts.prompt_encoding import instruction_messages
from conftest import RunScript
from demo_pages import case_files, console, model_loading, text_generation
from demo_pages.text_generation import Decoding
from hub_server import Hub, serving
from in_process import run_in_process

pytestmark = pytest.mark.integration


def test_pretraining_cases_are_decoded_as_published(tiny_checkpoint: Path, repository: Path) -> None:
    """All 17 cases have 3 beams and penalty 1.6; the first answer equals the result of text_generation.generate."""
    done = run_in_process("examples/generate_finetune.py", "--base_model", tiny_checkpoint, "--max_new_tokens", 8)
    assert done.stdout.count("tokens in") == 17
    assert done.stdout.count("[17/17] reasoning") == 1
    case = json.loads((repository / "examples/cases/pretraining.json").read_text())["cases"][0]
    base = model_loading.load(str(tiny_checkpoint))
    ids = base.encoder.plain_text_ids(case["text"])
    answer = text_generation.generate(base, ids, Decoding(8, num_beams=3, repetition_penalty=1.6))
    assert (
        f"[1/17] translation\n> {case['text']}\n{answer.text}\n  ({answer.ending}: {answer.new_tokens} tokens"
        in done.stdout
    )


def test_typed_lines_are_continued(tiny_checkpoint: Path, run_script: RunScript) -> None:
    """Answers are greedy and streamed; an empty line is skipped, and the error for a too long line is printed."""
    done = run_script(
        "examples/generate_finetune.py", "--base_model", tiny_checkpoint, "--interactive", "--num_beams", 1,
        "--repetition_penalty", 1, "--max_new_tokens", 12, "--temperature", 0.5,
        input=f"Ann was born in\n\n{'too long ' * 600}\n山水\n",
    )  # fmt: skip
    base = model_loading.load(str(tiny_checkpoint))
    for text in ("Ann was born in", "山水"):
        ids = base.encoder.plain_text_ids(text)
        assert text_generation.generate(base, ids, Decoding(12)).text in done.stdout
    assert "error: the prompt has" in done.stderr
    assert done.stderr.count("--temperature has no effect without --do_sample") == 1


def test_extraction_cases_use_the_wording_of_the_checkpoint(instructed_checkpoint: Path, tmp_path: Path) -> None:
    """The four published instructions are unchanged; they need a longer context than the tiny checkpoint has."""
    folder = shutil.copytree(instructed_checkpoint, tmp_path / "long")
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 2048}
    (folder / "config.json").write_text(json.dumps(config))
    done = run_in_process("examples/generate_lora.py", "--base_model", folder, "--run_ie_cases", "--max_new_tokens", 6)
    assert done.stdout.count("tokens in") == 10
    assert "section 2.2" in done.stdout.partition("[1/10] published: events as tuples\n> 我将给你个输入")[0]
    assert "[5/10] ner (en)\n> List: person, place, organisation\n> On Monday" in done.stdout
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
    ids = tuned.encoder.prompt_ids(instruction_messages("Translate.", "山水"))
    assert text_generation.generate(tuned, ids, Decoding(10)).text in done.stdout
    general = run_script("examples/generate_lora.py", *arguments, "--run_general_cases", "--num_beams", 1)
    assert general.stdout.count("tokens in") == 8
    template = "--template_path finetune/templates/alpaca.jinja"
    remedy = f"python tools/set_template.py --model_path {tiny_checkpoint} {template} --output_dir NEW"
    assert "has no chat template, so instructions are sent as plain text" in general.stderr
    assert f"{template}, or add it: {remedy}; for a pretrained model" in general.stderr
    assert "extraction.json" not in done.stderr + general.stderr


def test_extraction_cases_without_extraction_json_warn_of_the_default_wording(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = {"task": "ner", "language": "en", "schema": ["person"], "text": "Ann Lee was born in Oslo."}
    (cases := tmp_path / "cases.json").write_text(json.dumps([case]), encoding="utf-8")
    command = ("--base_model", tiny_checkpoint, "--lora_weights", adapter, "--cases", cases, "--max_new_tokens", 2)
    run_in_process("examples/generate_lora.py", *command)
    assert f"{adapter} has no extraction.json, so the default wording of extraction instructions is used" in caplog.text


def test_hub_names_of_base_and_adapter_give_the_answer_of_their_folders(
    tiny_checkpoint: Path, adapter: Path, repository: Path, tmp_path: Path, run_script: RunScript
) -> None:
    """The published adapter gets its template; the second run reads the cache while the hub is not reachable."""
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
    answer = text_generation.generate(
        tuned, tuned.encoder.prompt_ids(instruction_messages("Translate.", "山水")), Decoding(8)
    ).text
    assert answer and all(answer in done.stdout and "to download" not in done.stdout for done in (first, again))
    assert f"notice: some/base is not a folder; downloading it from {hub.url} to" in first.stderr
    cached = [re.sub(r" \(commit.*", "", line) for line in again.stderr.splitlines() if line.startswith("notice")]
    assert cached == [
        f"notice: some/base is read from {tmp_path}/knowlm/models/some--base",
        f"notice: zjunlp/zhixi-13b-lora is read from {tmp_path}/knowlm/models/zjunlp--zhixi-13b-lora",
    ]


def test_own_cases_are_answered_into_a_file(instructed_checkpoint: Path, tmp_path: Path) -> None:
    """JSONL with every form of case; each row has the prompt that the model read, the answer and the decoding used."""
    cases: list[dict[str, Any]] = [
        {"instruction": "Translate.", "input": "山水", "id": 7},
        {"text": "Ann was born in", "decoding": {"num_beams": 2}},
        {"task": "ner", "schema": ["person"], "text": "Ann Lee was born in Oslo."},
        {"text": "too long " * 600},
    ]
    file, output = tmp_path / "mine.jsonl", tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    arguments = ("--base_model", instructed_checkpoint, "--cases", file, "--max_new_tokens", 6)
    done = run_in_process("examples/generate_lora.py", *arguments, "--output", output)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    loaded = model_loading.load(str(instructed_checkpoint))
    ids = [
        loaded.encoder.prompt_ids(instruction_messages("Translate.", "山水")),
        loaded.encoder.plain_text_ids("Ann was born in"),
        loaded.encoder.prompt_ids(instruction_messages("List: person", "Ann Lee was born in Oslo.")),
    ]
    for row, case, prompt, beams in zip(rows, cases, ids, (1, 2, 1), strict=False):
        answer = text_generation.generate(loaded, prompt, Decoding(6, beams))
        assert row == case | {
            "prompt": loaded.tokenizer.decode(prompt), "answer": answer.text, "ending": answer.ending,
            "new_tokens": answer.new_tokens, "error": None, "decoding": asdict(Decoding(6, beams)),
        }  # fmt: skip
    assert rows[3]["answer"] is None
    assert rows[3]["error"].startswith("the prompt has")
    assert f"{output}: 4 rows" in done.stdout
    assert [name.name for name in tmp_path.iterdir() if "partial" in name.name] == []
    first = output.read_bytes()
    run_in_process("examples/generate_lora.py", *arguments, "--output", output, status=2)
    assert output.read_bytes() == first


def test_sampled_answers_of_a_seed_do_not_depend_on_other_cases(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """With a seed, a case has the same answer alone and after another case; another seed changes the answer."""
    texts = ["Ann was born in", "山水"]
    answers = {}
    for name, asked, seed in (("both", texts, 5), ("second", texts[1:], 5), ("other", texts[1:], 6)):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"text": text} for text in asked]), encoding="utf-8")
        output = tmp_path / f"{name}.jsonl"
        run_in_process(
            "examples/generate_finetune.py", "--base_model", tiny_checkpoint, "--cases", tmp_path / f"{name}.json",
            "--preset", "creative", "--seed", seed, "--max_new_tokens", 12, "--output", output,
        )  # fmt: skip
        row = json.loads(output.read_text(encoding="utf-8").splitlines()[-1])
        answers[name] = row["answer"]
        assert row["decoding"] == asdict(Decoding(12, 1, 1.1, True, 0.9, 0.95, 100, seed))
    assert answers["both"] == answers["second"] != answers["other"]


def test_interrupted_run_leaves_no_file_of_answers(instructed_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    loaded = model_loading.load(str(instructed_checkpoint))
    suite = case_files.Suite([{"text": "Ann"}, {"text": "Bo"}], ["1", "2"], {"max_new_tokens": 2}, "")
    with pytest.raises(KeyboardInterrupt), case_files.answers_file(str(output)) as write:
        write({"answer": "one"})
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    console.run_cases(loaded, suite, {}, str(output))
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]


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
            "exactly one of --run_ie_cases, --run_general_cases, --cases and --interactive",
        ),
        ("lora", ("--base_model", "CHECKPOINT", "--run_ie_cases", "--interactive"), "exactly one of"),
        (
            "lora",
            ("--base_model", "CHECKPOINT", "--interactive", "--output", "a.jsonl"),
            "--interactive writes no --output",
        ),
        ("finetune", ("--base_model", "CHECKPOINT", "--interactive", "--cases", "a.jsonl"), "reads no --cases"),
        ("finetune", ("--base_model", "CHECKPOINT", "--cases", "none.jsonl"), "none.jsonl does not exist"),
        ("lora", ("--base_model", "CHECKPOINT", "--run_ie_cases", "--output", "README.md"), "README.md exists; choose"),
        ("lora", ("--base_model", "CHECKPOINT", "--run_ie_cases", "--preset", "wild"), "one of precise, creative"),
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
