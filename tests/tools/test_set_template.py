"""tools/set_template.py writes a new folder with the template and refuses invalid templates."""

import json
import shutil
from pathlib import Path

import pytest
import quantize
import set_template
import weight_diff
from chat_prompts.prompt_encoding import PromptEncoder, instruction_messages
from conftest import REPOSITORY
from in_process import RunTool
from tokenizers import Tokenizer, models

SCRIPT = "tools/set_template.py"
ALPACA = REPOSITORY / "finetune/templates/alpaca.jinja"


def test_new_folder_has_the_template_and_the_same_weights(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    from transformers import AutoTokenizer

    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (model / "chat_template.jinja").write_text("old")
    (model / "extraction.json").write_text("{}")
    signatures = {"model.sig", "SHA256SUMS", "checklist.chk", "model.safetensors.asc"}
    for name in signatures:
        (model / name).write_text("of the old folder")
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "older"}))
    run_tool("tools/checkpoint.py", "seal", model)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    out = tmp_path / "out"
    run_tool(SCRIPT, "--model_path", model, "--template_path", ALPACA, "--output_dir", out)

    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert {path.name for path in out.iterdir()} == set(before) - {"checkpoint.json"} - signatures
    for name in (
        set(before) - signatures - {"checkpoint.json", "chat_template.jinja", "tokenizer_config.json", "run.json"}
    ):
        assert (out / name).read_bytes() == before[name]
    assert (out / "chat_template.jinja").read_bytes() == ALPACA.read_bytes()
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(out)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi", "input": "there"}], tokenize=False)
    assert str(text).startswith("<s>Below is an instruction")
    (out / "config.json").write_text("{}")  # small files are copies, not links
    assert (model / "config.json").read_bytes() == before["config.json"]


def test_input_is_appended_if_the_template_ignores_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ bos_token }}{{ messages[0].content }}")
    set_template.main(str(tiny_checkpoint), str(template), str(tmp_path / "out"))
    from transformers import AutoTokenizer

    encoder = PromptEncoder(AutoTokenizer.from_pretrained(tmp_path / "out"))
    assert encoder.rendered_prompt(instruction_messages("Which?", "this")) == "<s>Which?\n\nthis"


@pytest.mark.parametrize("stored", ["files", "list"])
def test_named_templates_are_kept_beside_the_new_one(tiny_checkpoint: Path, tmp_path: Path, stored: str) -> None:
    """A damaged default template is not an error, since it is replaced."""
    from transformers import AutoTokenizer

    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    if stored == "files":
        (model / "additional_chat_templates").mkdir()
        (model / "additional_chat_templates/tool_use.jinja").write_text("tools")
        (model / "chat_template.jinja").write_bytes(b"\xff{{")
    else:
        listed = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{"}]
        config = json.loads((model / "tokenizer_config.json").read_text())
        (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": listed}))
    set_template.main(str(model), str(ALPACA), str(tmp_path / "out"))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == {
        "default": ALPACA.read_text(),
        "tool_use": "tools",
    }
    assert "chat_template" not in json.loads((tmp_path / "out/tokenizer_config.json").read_text())


def test_new_folder_inside_an_input_folder_is_refused(tiny_checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (tmp_path / "link").symlink_to(model)
    before, inside = sorted(model.iterdir()), str(tmp_path / "link/more/inside")
    base = str(tiny_checkpoint)
    for write in (
        lambda: set_template.main(str(model), str(ALPACA), inside),
        lambda: weight_diff.make_diff(base, str(model), inside),
        lambda: weight_diff.make_diff(str(model), base, inside, exact=False),
        lambda: weight_diff.merge(str(model), [str(adapter)], inside),
    ):
        with pytest.raises(ValueError, match=r"link/more/inside is inside the input folder .*/model, which must not"):
            write()
    with pytest.raises(ValueError, match=r"/inside is inside the input folder .*/adapter, which must not"):
        weight_diff.merge(str(model), [str(adapter)], str(adapter / "inside"))
    assert sorted(model.iterdir()) == before


def test_template_name_outside_the_new_folder_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    listed = [{"name": name, "template": "{{ messages }}"} for name in ("default", "../../evil")]
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": listed}))
    base, out = str(tiny_checkpoint), str(tmp_path / "a/out")
    data = tmp_path / "rows.jsonl"
    data.write_text('{"instruction": "Say", "output": "no"}\n' * 4)
    for write in (
        lambda: set_template.main(str(model), str(ALPACA), out),
        lambda: weight_diff.make_diff(base, str(model), out),
        lambda: weight_diff.make_diff(base, str(model), out, exact=False),
        lambda: weight_diff.recover(base, str(model), out),
        lambda: quantize.main(str(model), out, "nf4", eval_path=str(data)),
    ):
        with pytest.raises(ValueError, match=r"config\.json: '\.\./\.\./evil' cannot be the file name of a chat templ"):
            write()
    assert {path.name for path in tmp_path.iterdir()} == {"model", "rows.jsonl"}


def test_exact_tokenizer_json_is_written_for_other_tokenizer_class(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (model / "tokenizer.json").unlink()
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "InternLMTokenizer"}))
    set_template.main(str(model), str(ALPACA), str(tmp_path / "out"))
    written, exact = (
        json.loads((folder / "tokenizer.json").read_text())["model"] for folder in (tmp_path / "out", tiny_checkpoint)
    )
    assert (written["vocab"], written["merges"]) == (exact["vocab"], exact["merges"])


def test_missing_tokenizer_config_is_reported_for_the_input_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    for name in ("tokenizer_config.json", "tokenizer.model"):
        (model / name).unlink()
    (model / "config.json").write_text('{"model_type": "gpt2"}')
    Tokenizer(models.BPE({"a": 0}, [])).save(str(model / "tokenizer.json"))
    message = f"^{model} has no tokenizer_config.json; copy the model's own file there$"
    with pytest.raises(FileNotFoundError, match=message):
        set_template.main(str(model), str(ALPACA), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_chat_template_json_and_template_with_byte_order_mark_are_written_as_jinja(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    processor, marked = tmp_path / "chat_template.json", tmp_path / "marked.jinja"
    processor.write_text(json.dumps({"chat_template": "{{ messages[0].content }}!"}))
    marked.write_text("\ufeff{{ messages[0].content }}!", encoding="utf-8")
    for file in (processor, marked):
        set_template.main(str(tiny_checkpoint), str(file), str(tmp_path / file.stem))
        assert (tmp_path / file.stem / "chat_template.jinja").read_bytes() == b"{{ messages[0].content }}!"


BROKEN = {
    "syntax": ("\n{{ bos_token", "line 2: the template is not valid Jinja"),
    "refusal": ("{{ raise_exception('no ' + messages[0].role) }}", "cannot render these messages: no user"),
    "unknown name": ("{{ messages[0].content + missing }}", "cannot render"),
    "changed input": ("{{ messages[0].content }}{{ messages[0].input | upper }}", "'input'"),
    "no content": ("{{ messages[0].input }}", "'content'"),
    "changed": ("{{ messages[0].content | upper }} {{ messages[0].input }}", "'content'"),
    "forbidden": ("{{ messages.__class__.__mro__ }}", "cannot render"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_set_template_refuses_invalid_template(tiny_checkpoint: Path, tmp_path: Path, case: str) -> None:
    text, expected = BROKEN[case]
    template = tmp_path / "template.jinja"
    template.write_text(text)
    with pytest.raises(ValueError, match=expected) as raised:
        set_template.main(str(tiny_checkpoint), str(template), str(tmp_path / "out"))
    assert str(template) in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["template.jinja"]


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--model_path", "none", "none is not a folder"),
        ("--model_path", "finetune", "not a checkpoint folder"),
        ("--template_path", "none.jinja", "--template_path none.jinja is not an existing .jinja or .json file"),
        ("--template_path", "pyproject.toml", "--template_path pyproject.toml is not an existing .jinja"),
        ("--name", "alpaca", "unknown option --name"),
    ],
)
def test_invalid_options_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, option: str, value: str, expected: str
) -> None:
    given = {
        "--model_path": tiny_checkpoint,
        "--template_path": ALPACA,
        "--output_dir": tmp_path / "out",
        option: value,
    }
    done = run_tool(SCRIPT, *(part for pair in given.items() for part in pair), status=2)
    assert expected in done.stderr
    assert list(tmp_path.iterdir()) == []
