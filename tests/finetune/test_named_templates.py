"""named_templates.py: the chat template of a run, and what the run prints about it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from chat_models import PUBLISHED, with_markers
from chat_prompts.prompt_encoding import PromptEncoder
from conftest import RunScript
from instruction_data.named_templates import choose_template, load_template
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig
from tuning_runs import command


@pytest.fixture
def tokenizer(tiny_tokenizer: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_tokenizer)


def test_unknown_template_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no template 'vicuna'; take one of alpaca, alpaca_short, chatml, llama-2"):
        load_template("vicuna")
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    assert load_template(str(tmp_path / "own.jinja")) == "{{ messages }}"


def test_template_of_the_base_is_kept_unless_another_is_named(tokenizer: Any) -> None:
    assert choose_template("", tokenizer, "B") == (load_template("alpaca"), "alpaca, since B has none")
    tokenizer.chat_template = PUBLISHED["zephyr"]
    text_markers = "; it writes <|assistant|> as ordinary text, since the tokenizer has no such special token"
    assert choose_template("", tokenizer, "B") == (PUBLISHED["zephyr"], f"the base's own, in B{text_markers}")
    assert choose_template("llama-2", tokenizer, "B") == (load_template("llama-2"), "llama-2")


def test_base_with_only_named_templates_gets_alpaca_and_they_are_listed(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/tool_use.jinja").write_text("tools")
    origin = f"alpaca, since {tmp_path} has none, only the named template tool_use"
    assert choose_template("", tokenizer, str(tmp_path)) == (load_template("alpaca"), origin)


def test_template_whose_tokens_the_tokenizer_lacks_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"chatml writes <\|im_end\|>, which the tokenizer of B does not have"):
        choose_template("chatml", tokenizer, "B")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    assert choose_template("chatml", tokenizer, "B")[1] == "chatml"


def test_resumed_run_keeps_its_template(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = PUBLISHED["zephyr"]
    (tmp_path / "chat_template.jinja").write_text(load_template("alpaca"))
    template, origin = choose_template("", tokenizer, "B", str(tmp_path))
    assert (template, origin) == (load_template("alpaca"), f"{tmp_path}/chat_template.jinja")
    assert choose_template("alpaca", tokenizer, "B", str(tmp_path))[0] == template
    (tmp_path / "own").mkdir()
    (tmp_path / "own/chat_template.jinja").write_text(PUBLISHED["zephyr"])
    assert choose_template("", tokenizer, "B", str(tmp_path / "own"))[0] == PUBLISHED["zephyr"]
    with pytest.raises(ValueError, match=r"llama-2 is not the template of .*; remove the option to resume$"):
        choose_template("llama-2", tokenizer, "B", str(tmp_path))


@pytest.fixture(scope="module")
def instruct_base(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a template of its own and an end-of-turn that is neither EOS nor in its generation config."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("instruct") / "base")
    tokenizer = with_markers(folder)
    tokenizer.chat_template = {"default": PUBLISHED["qwen"], "tool_use": "tools"}
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            rows = tensors[name]
            tensors[name] = rows.repeat(2, 1)[: len(tokenizer)].contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(tokenizer)}))
    return folder


@pytest.mark.integration
@pytest.mark.parametrize("method", ["lora", "full"])
def test_result_has_the_template_of_the_base_and_stops_at_its_end_of_turn(
    instruct_base: Path, rows_file: Path, tmp_path: Path, run_script: RunScript, method: str
) -> None:
    out = tmp_path / "out"
    run = command(instruct_base, rows_file, out, "--method", method, "--max_steps", 2, "--batch_size", 4)
    done = run_script("finetune/finetune.py", *run, "--micro_batch_size", 4)
    assert done.stdout.count("prompt template: ") == 1
    assert f"prompt template: the base's own, in {instruct_base}" in done.stdout
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == {"default": PUBLISHED["qwen"], "tool_use": "tools"}
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert GenerationConfig.from_pretrained(instruct_base).eos_token_id == tokenizer.eos_token_id != end
    assert {end, tokenizer.eos_token_id} <= set(GenerationConfig.from_pretrained(out).eos_token_id)
    assert set(PromptEncoder(tokenizer).stop_ids) == {end, tokenizer.eos_token_id}
    if method == "lora":
        run_script(
            "tools/weight_diff.py", "merge", "--path_zhixi", instruct_base, "--path_lora", out,
            "--path_sfted", tmp_path / "merged",
        )  # fmt: skip
        assert (tmp_path / "merged/additional_chat_templates/tool_use.jinja").read_text() == "tools"
        assert end in GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id
