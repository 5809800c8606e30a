"""chat_prompts/template_files.py: templates in files and folders, and alpaca prompt files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from chat_models import QUESTIONS
from chat_prompts.prompt_encoding import PromptEncoder, instruction_messages
from chat_prompts.template_files import folder_template, from_alpaca, missing_template, read_template, read_templates
from instruction_data.named_templates import load_template
from transformers import AutoTokenizer

LISTED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "main"}]
Tokenizer = Any


@pytest.fixture
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return AutoTokenizer.from_pretrained(tiny_tokenizer)


def test_alpaca_prompt_file_gives_the_same_prompts_as_the_template(shared_data: Path, tokenizer: Tokenizer) -> None:
    for name in ("alpaca", "alpaca_short"):
        older = PromptEncoder(tokenizer, read_template(shared_data / f"templates/{name}.json", "--template_path"))
        ours = PromptEncoder(tokenizer, load_template(name))
        for question in [*QUESTIONS, ("List {x} three.", "of %s"), ('say "山" \\ {{x}}', "")]:
            assert older.prompt_ids(instruction_messages(*question)) == ours.prompt_ids(instruction_messages(*question))


def test_template_syntax_in_an_alpaca_file_is_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    prompt = '{{% raw %}} {{{{ bos_token }}}} "quoted" \\n 🤖\n{instruction}|{{x}}\n'
    text = json.dumps({"prompt_input": prompt + "{input}!", "prompt_no_input": prompt})
    encoder = PromptEncoder(tokenizer, from_alpaca(text, tmp_path))
    assert (
        encoder.rendered_prompt(instruction_messages("I", "J"))
        == '<s>{% raw %} {{ bos_token }} "quoted" \\n 🤖\nI|{x}\nJ!'
    )
    broken = ("{", "[]", "{}", '{"prompt_input": "{instruction}"}', '{"prompt_input": "{a}", "prompt_no_input": ""}',
              '{"prompt_input": 1, "prompt_no_input": "x"}', '{"prompt_input": "{x}"}')  # fmt: skip
    for content in broken:
        with pytest.raises(ValueError, match="is not an alpaca prompt file"):
            from_alpaca(content, tmp_path)


def test_missing_or_undecodable_template_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jinja does not exist; --template_path takes"):
        read_template(tmp_path / "none.jinja", "--template_path")
    (tmp_path / "old.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_template(tmp_path / "old.jinja", "--template_path")
    assert folder_template(tmp_path) is folder_template("") is None
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert folder_template(tmp_path) == "{{ messages }}"


def test_byte_order_mark_of_a_template_is_not_part_of_the_prompt(tmp_path: Path, tiny_tokenizer: Path) -> None:
    folder = shutil.copytree(tiny_tokenizer, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("\ufeff{{ messages[0].content }}", encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template.startswith("\ufeff")
    templates = [None, folder_template(folder), read_template(folder / "chat_template.jinja", "--template_path")]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"chat_template": "\ufeff{{ messages[0].content }}"})
    )
    for template in [*templates, folder_template(folder)]:
        assert PromptEncoder(tokenizer, template).rendered_prompt(instruction_messages("a")) == "a"


def test_template_with_a_syntax_error_is_refused_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}\n{% for m in messages %}\n{{ m.content }")
    for read in (folder_template, lambda folder: read_template(folder / "chat_template.jinja", "--template_path")):
        with pytest.raises(ValueError, match=r"chat_template\.jinja, line 3: the template is not valid Jinja \(.*'}'"):
            read(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "a\n{% nosuchtag %}"}))
    with pytest.raises(ValueError, match=r"config\.json, chat_template 'default', line 2: .*unknown tag 'nosuchtag'"):
        folder_template(tmp_path)


def test_template_with_tags_of_transformers_is_accepted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(text)
    assert PromptEncoder(tokenizer, folder_template(tmp_path)).rendered_prompt(instruction_messages("a")) == "a"


@pytest.mark.parametrize("stored", [LISTED, {"tool_use": "tools", "default": "main"}])
def test_default_of_several_templates_is_used_as_in_transformers(
    tmp_path: Path, tiny_tokenizer: Path, stored: Any
) -> None:
    folder = shutil.copytree(tiny_tokenizer, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": stored}))
    assert folder_template(folder) == "main" == AutoTokenizer.from_pretrained(folder).get_chat_template()
    assert read_templates(folder) == {"tool_use": "tools", "default": "main"}
    assert read_templates(folder, named_only=True) == {"tool_use": "tools"}


@pytest.mark.parametrize("stored", [3, ["main"], [{"name": "default"}], {"default": 1}])
def test_chat_template_that_is_neither_text_nor_named_is_refused(tmp_path: Path, stored: Any) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": stored}))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: chat_template is neither text nor named templates"):
        read_templates(tmp_path)


@pytest.mark.parametrize("name", ["../../evil", "/evil", "tool/use", "", "a\0b", "\ud800", "山" * 100])
def test_template_whose_name_is_not_a_file_name_is_refused(tmp_path: Path, name: str) -> None:
    listed = [*LISTED, {"name": name, "template": "evil"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    for named_only in (False, True):
        with pytest.raises(
            ValueError, match=r"/tokenizer_config\.json: '.*' cannot be the file name of a chat"
        ) as raised:
            read_templates(tmp_path, named_only)
        assert f": {name[:80]!r} cannot" in str(raised.value)


def test_warning_without_a_main_template_lists_the_other_templates_and_the_command(tmp_path: Path) -> None:
    option, file = "--template_path finetune/templates/alpaca.jinja", tmp_path / "chat_template.json"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": LISTED[:1]}))
    assert folder_template(tmp_path) is None
    assert missing_template(tmp_path, option).startswith(
        f"{tmp_path} has no chat template, only the named template tool_use in tokenizer_config.json, so "
    )
    (tmp_path / "tokenizer_config.json").write_text("{}")
    file.write_text(json.dumps({"chat_template": "{{ messages[0].content }}!"}))
    warning = missing_template(tmp_path, option)
    assert "has no chat template, only chat_template.json, which transformers does not read, so" in warning
    assert f": --template_path {file}, or add it: python tools/set_template.py --model_path {tmp_path} " in warning
    assert f" --template_path {file} --output_dir NEW" in warning
    assert read_template(file, "--template_path") == "{{ messages[0].content }}!"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/rag.jinja").write_text("r")
    assert f"{tmp_path}/additional_chat_templates/rag.jinja" in missing_template(tmp_path, option)
