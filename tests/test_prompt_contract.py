"""Tuning, ie_run, demos, server, batch and calibration give the same token ids for the same conversation."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ie_run
import pytest
import torch
import weight_diff
from batch_runs.batch_rows import generate_request
from chat_models import END, PUBLISHED, byte_level, with_markers
from chat_prompts.prompt_encoding import PromptEncoder
from conftest import REPOSITORY, RunScript, small_texts
from demo_pages import model_loading, web_page
from demo_pages.model_loading import Checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instruction_data.named_templates import load_template
from json_rows.instruction_rows import prompt_messages
from lora_adapters import make_adapter
from quantization.quantization_inputs import encode_row
from routes.generate_api import GenerateRequest
from routes.served_models import ServedModel
from safetensors.torch import save_file
from server_launch.launch_args import precheck
from tuning_runs import command, encoded

import finetune

SHIPPED = ("alpaca", "alpaca_short", "chatml", "llama-2")
KINDS = ("llama", "byte-level", "tiny")
TEMPLATES = {**{name: load_template(name) for name in SHIPPED}, **PUBLISHED}
Row = dict[str, Any]
ALPACA = REPOSITORY / "finetune/templates/alpaca.jinja"


@pytest.fixture(scope="session")
def tokenizers_by_kind(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory, run_script: RunScript, tiny_tokenizer: Path
) -> dict[str, Any]:
    """Tokenizers: LLaMA-2's SentencePiece, a byte-level BPE and a small SentencePiece model; EOS is `</s>`."""
    folder = tmp_path_factory.mktemp("tokenizers")
    model = shared_data / "llama/tokenizer.model"
    run_script("tools/build_tokenizer.py", "--tokenizer_model", model, "--output_dir", folder / "llama")
    byte_level(folder / "byte-level", small_texts())
    folders = {"llama": folder / "llama", "byte-level": folder / "byte-level", "tiny": tiny_tokenizer}
    return {kind: with_markers(place) for kind, place in folders.items()}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=sorted(TEMPLATES))
def template(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tokenizer(tokenizers_by_kind: dict[str, Any], kind: str, template: str) -> Any:
    tokenizer = tokenizers_by_kind[kind]
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer


def user(content: str, input: str = "") -> dict[str, str]:
    return {"role": "user", "content": content, "input": input}


def answer(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Be brief. 请用中文。"}
CONVERSATIONS: list[list[dict[str, str]]] = [
    [user("Where was Ann born?"), answer("Oslo.")],
    [user("抽取实体。", "李白生于碎叶。"), answer('{"人物": ["李白"]}')],
    [user("Code:"), answer("def f():\n    return 1\n")],
    [user("  spaces, \n\nlines "), answer(" two  spaces at both ends  ")],
    [user("a"), answer("Yes "), user("b", "an input"), answer("No\n\n"), user("c"), answer(" \n")],
    [user("问"), answer("答。"), user("再问？", "材料"), answer("再答。\n"), user("ok?"), answer("好 ")],
    [user("empty answers"), answer(""), user("still"), answer(""), user("now"), answer("x")],
    [user("Say </s> <s>"), answer("</s> <|im_end|>"), user("<|eot_id|>", "<end_of_turn>"), answer("<|im_start|>user")],
    [user("".join(map(chr, range(0xFDD0, 0xFDF0)))), answer("\ufdd0 \ufdef"), user("\ufdd0"), answer("ok")],
    [SYSTEM, user("Who?", "Ann."), answer("Ann"), user("And?"), answer("Bo")],
    [SYSTEM, user("Who?"), answer("Ann ")],
]


def served(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Return the ids that the server and the batch client's engine pass to vLLM for these messages."""
    model = ServedModel(None, PromptEncoder(tokenizer), {}, 10**6, 100, [])
    body = generate_request({"messages": messages}, "", {})
    return model.encode(GenerateRequest.model_validate(body).conversation())


def trained(tokenizer: Any, messages: list[dict[str, str]]) -> Any:
    """Return the ids and supervised spans of a row in tuning, or None if its answers are empty."""
    [row] = encoded(tokenizer, [{"messages": messages}], 10**6)
    return None if row.dropped else row


def outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except ValueError as error:
        return str(error)


REWRITES = "the chat template rewrites earlier turns"
CANNOT_RENDER = "the chat template cannot render these messages"


def check(tokenizer: Any, talk: list[dict[str, str]], template: str) -> None:
    """Compare the ids of all consumers for a conversation that ends in an answer."""
    places = [at for at, message in enumerate(talk) if message["role"] == "assistant"]
    prompts = [outcome(partial(served, tokenizer, talk[:at])) for at in places]
    example = outcome(lambda: trained(tokenizer, talk))
    [ie_run] = [outcome(lambda: PromptEncoder(tokenizer).batch_prompt_ids([prompt_messages({"messages": talk})])[0])]
    assert ie_run == prompts[-1]
    measured = outcome(lambda: encode_row(PromptEncoder(tokenizer), {"messages": talk}, Path("model")))
    if isinstance(prompts[-1], str):  # the template refuses such a conversation in every consumer
        assert prompts[-1].startswith(CANNOT_RENDER)
        assert CANNOT_RENDER in example
        assert CANNOT_RENDER in measured
        return
    assert measured.prompt == prompts[-1]
    if len(places) == 1 and talk[0]["role"] == "user":
        demo = Checkpoint(None, PromptEncoder(tokenizer), {})
        content, context = talk[0]["content"], talk[0].get("input", "")
        if content.strip():
            assert web_page.instruction_ids(demo, {}, content, context) == prompts[0]
        instruction = GenerateRequest.model_validate({"instruction": content, "input": context}).conversation()
        assert ServedModel(None, demo.encoder, {}, 10**6, 100, []).encode(instruction) == prompts[0]
    if isinstance(example, str):  # only if the ids of an earlier turn cannot match
        assert REWRITES in example
        assert len(places) > 1
        thinks = any("</think>" in message["content"] for message in talk)
        assert thinks if template == "qwen3" else (template, talk[0]) == ("mistral-v3", SYSTEM)
        return
    if example is None:
        return
    starts, ends = example.spans[::2], example.spans[1::2]
    for start, prompt in zip(starts, prompts, strict=True):
        assert example.ids[:start] == prompt
    assert example.ids[starts[-1] :] == measured.answer
    for end, following in zip(ends, prompts[1:], strict=False):
        assert following[:end] == example.ids[:end]
    ending = tokenizer.convert_tokens_to_ids(END.get(template, "</s>"))
    assert example.ids[-1] == ending
    assert ending in PromptEncoder(tokenizer).stop_ids
    rewritten = {"no-end": True, "mistral-v3": talk[0] == SYSTEM, "qwen3": "</think>" in talk[-1]["content"]}
    if not rewritten.get(template):
        assert served(tokenizer, [*talk, user("next")])[: len(example.ids)] == example.ids


def test_all_consumers_give_the_same_ids(tokenizer: Any, template: str) -> None:
    for talk in CONVERSATIONS:
        check(tokenizer, talk, template)


PIECES = [
    "a",
    "Dabe",
    " ",
    "山",
    "\n",
    ".",
    "</s>",
    "<|im_end|>",
    "🤖",
    "  ",
    "\ufdd0",
    "{{ x }}",
    "</think>",
    "[INST]",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
TURNS = st.tuples(TEXTS, TEXTS, TEXTS).filter(lambda turn: any(turn[:2]))  # the server refuses an empty question


def test_all_consumers_give_the_same_ids_for_any_text(tokenizer: Any, template: str) -> None:
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(TURNS, min_size=1, max_size=3))
    def check_conversation(turns: list[tuple[str, str, str]]) -> None:
        check(
            tokenizer,
            [part for question, context, reply in turns for part in (user(question, context), answer(reply))],
            template,
        )

    check_conversation()


COMMANDS: dict[str, Callable[[Path, Path, Path], Any]] = {
    "demos": lambda model, out, rows: model_loading.load(str(model)),
    "ie_run": lambda model, out, rows: ie_run.main(str(model), str(rows), str(out / "answers.jsonl")),
    "finetune": lambda model, out, rows: finetune.main(command(model, rows, out / "tuned")),
    "server": lambda model, out, rows: precheck(["--model", str(model)]),
    "merge": lambda model, out, rows: weight_diff.merge(str(model), [str(out / "adapter")], str(out / "merged")),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_damaged_template_is_refused_before_the_model_is_loaded(
    tiny_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    rows, model = tmp_path / "rows.jsonl", shutil.copytree(tiny_checkpoint, tmp_path / "model")
    rows.write_text('{"instruction": "a", "input": "", "output": "b"}\n' * 4)
    template = model / "chat_template.jinja"
    if name != "merge":  # merge reads the headers of the weights first
        save_file({"not a weight of the model": torch.zeros(1)}, model / "model.safetensors")
    for content, message in (
        (b"{{ bos_token }}\n{% if x %}", rf"{template}, line 2: the template is not valid Jinja"),
        (b"\xff\xfe{", rf"{template} is not UTF-8 \(.*\); convert it first"),
    ):
        template.write_bytes(content)
        out = tmp_path / str(len(content))
        make_adapter(tiny_checkpoint, out / "adapter", target_modules=["q_proj"])
        with pytest.raises(ValueError, match=message):
            COMMANDS[name](model, out, rows)
        if name == "server":  # another template replaces the damaged one
            precheck(["--model", str(tiny_checkpoint), "--tokenizer", str(model), "--template_path", str(ALPACA)])
        assert [path.name for path in out.iterdir() if path.name not in ("adapter", "cache")] == []


def test_merge_keeps_named_templates_without_byte_order_mark_and_reports_a_missing_main_template(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    named = model / "additional_chat_templates"
    named.mkdir()
    (named / "tool_use.jinja").write_text("\ufefftools", encoding="utf-8")
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter", target_modules=["q_proj"])
    weight_diff.merge(str(model), [str(adapter)], str(tmp_path / "merged"))
    assert (tmp_path / "merged/additional_chat_templates/tool_use.jinja").read_bytes() == b"tools"
    notice = capsys.readouterr().out
    assert "has no chat_template.jinja, only the named template tool_use (" in notice
    assert f"--template_path {named}/tool_use.jinja --output_dir NEW" in notice
