"""Folders with Python code of their own: every tool copies it, and no command executes it without consent."""

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ie_run
import pytest
import sentencepiece
import set_template
import torch
import train
import weight_diff
from conftest import QUANTISED, REPOSITORY, RunScript, needs_bitsandbytes
from demo_pages import model_loading
from in_process import run_in_process
from lora_adapters import make_adapter
from model_folders.own_code import from_folder, own_code_error
from own_code_models import change, with_own_model, with_own_tokenizer
from pretraining_runs import options, train_here
from quantization import quantization_inputs, quantization_methods
from safetensors.torch import load_file
from server_launch import launch_adapters, launch_checks
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils
from tuning_runs import command

import finetune

IDS = torch.arange(10, 40)[None]
ALPACA = REPOSITORY / "finetune/templates/alpaca.jinja"
REFUSAL = r" needs its own Python code \({}\), which is not executed by default; read it, and .* --trust_remote_code$"
STEPS = ("--batch_size", 4, "--max_steps", 2, "--save_strategy", "no", "--show_rows", "False", "--warmup_steps", 0)


@pytest.fixture(autouse=True)
def code_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to which transformers copies code before it executes it. A question on stdin fails the test."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on standard input"))
    return tmp_path / "modules"


@pytest.fixture
def own_model(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return with_own_model(tiny_checkpoint, tmp_path / "model")


@pytest.fixture
def own_tokenizer(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return with_own_tokenizer(tiny_checkpoint, tmp_path / "tokenizer")


@pytest.fixture
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text('{"instruction": "Say it.", "input": "", "output": "Mela was born in Doku."}\n' * 8)
    return file


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IDS).logits


@pytest.fixture
def half_logits(tiny_checkpoint: Path) -> torch.Tensor:
    """The logits that the own code gives for the weights of the tiny checkpoint."""
    return logits(AutoModelForCausalLM.from_pretrained(tiny_checkpoint)) / 2


@pytest.mark.integration
def test_own_code_is_refused_in_one_line_if_standard_input_is_a_terminal(
    own_model: Path, tmp_path: Path, rows_file: Path
) -> None:
    terminal, stdin = pty.openpty()
    done = subprocess.run(
        [sys.executable, "finetune/finetune.py", *command(own_model, rows_file, tmp_path / "out")],
        cwd=REPOSITORY, stdin=stdin, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    os.close(terminal)
    os.close(stdin)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {own_model} needs its own Python code (modeling_own.py), which is not executed")
    assert line.endswith("--trust_remote_code")
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


MODEL_COMMANDS: dict[str, Callable[[Path, Path, Path], Any]] = {
    "train": lambda model, out, data: train.main(list(map(str, options(model, data, out)))),
    "ie_run": lambda model, out, data: ie_run.load_merged(str(model), "", "float32"),
    "demos": lambda model, out, data: model_loading.load(str(model)),
    "quantize": lambda model, out, data: quantization_methods.linear_layers(model),
    "server": lambda model, out, data: launch_checks.check_own_code(model),
}
TOKENIZER_COMMANDS: dict[str, Callable[[Path, Path], Any]] = {
    "set_template": lambda folder, out: set_template.main(str(folder), str(ALPACA), str(out)),
    "quantize": lambda folder, out: quantization_inputs.read_data(
        folder, False, {"trust_remote_code": False, "max_length": 1, "eval_path": "", "seed": 1}
    ),
    "server": lambda folder, out: launch_adapters.load_tokenizer(folder, False),
}


@pytest.mark.parametrize("name", MODEL_COMMANDS)
def test_own_model_code_is_not_executed_by_default(own_model: Path, tmp_path: Path, rows_file: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{own_model}" + REFUSAL.format("modeling_own.py")):
        MODEL_COMMANDS[name](own_model, tmp_path / "out", rows_file)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", TOKENIZER_COMMANDS)
def test_own_tokenizer_code_is_not_executed_by_default(own_tokenizer: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{own_tokenizer}" + REFUSAL.format("tokenization_own.py")):
        TOKENIZER_COMMANDS[name](own_tokenizer, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


def test_trusted_code_gives_its_logits_in_demos_and_ie_run(
    own_model: Path, tmp_path: Path, half_logits: torch.Tensor
) -> None:
    demo = model_loading.load(str(own_model), trust_remote_code=True).model
    assert (tmp_path / "executed").read_text() == "executed"
    model, _ = ie_run.load_merged(str(own_model), "", "float32", trust_remote_code=True)
    for loaded in (demo, model):
        torch.testing.assert_close(logits(loaded), half_logits)


@pytest.mark.integration
@pytest.mark.parametrize("stage", ["finetune", "pretrain"])
def test_model_with_trusted_code_is_trained_and_the_result_has_the_code(
    own_model: Path,
    tmp_path: Path,
    rows_file: Path,
    two_sources: Path,
    half_logits: torch.Tensor,
    capsys: pytest.CaptureFixture[str],
    stage: str,
) -> None:
    """Model and tokenizer have own code; with a learning rate of 0, the result has the logits of the base."""
    base, out = with_own_tokenizer(own_model, tmp_path / "both"), tmp_path / "out"
    trust = ("--learning_rate", 0, "--trust_remote_code", "True")
    if stage == "finetune":
        finetune.main(command(base, rows_file, out, *STEPS, "--method", "full", *trust))
        demo = f"try it: python examples/generate_lora.py --base_model {out} --interactive --trust_remote_code"
        assert capsys.readouterr().out.splitlines()[-1] == demo
    else:
        (base / "additional_chat_templates").mkdir()
        for name in ("chat_template.jinja", "additional_chat_templates/tool.jinja"):
            (base / name).write_text(f"{name} {{{{ messages[0].content }}}}")
        train_here(*options(base, two_sources, out, "--save_strategy", "no", "--max_steps", 1, *trust))
        for name in ("chat_template.jinja", "additional_chat_templates/tool.jinja"):
            assert (out / name).read_text() == (base / name).read_text()
        assert (out / "additional_chat_templates").stat().st_mode & 0o100  # the folder can be entered
    (tmp_path / "executed").unlink()
    with pytest.raises(ValueError, match=f"^{out}" + REFUSAL.format("modeling_own.py, tokenization_own.py")):
        model_loading.load(str(out))
    assert not (tmp_path / "executed").exists()
    loaded = model_loading.load(str(out), trust_remote_code=True)
    assert type(loaded.tokenizer).__name__ == "OwnTokenizer"
    torch.testing.assert_close(logits(loaded.model), half_logits)


def test_unneeded_code_of_a_llama_model_is_copied_to_the_result(
    tiny_checkpoint: Path, tmp_path: Path, rows_file: Path
) -> None:
    """transformers has the model type, so the code is not executed, but it is kept."""
    base, out = with_own_model(tiny_checkpoint, tmp_path / "model"), tmp_path / "out"
    change(base / "config.json", model_type="llama")
    finetune.main(command(base, rows_file, out, *STEPS, "--method", "full"))
    assert (out / "modeling_own.py").read_bytes() == (base / "modeling_own.py").read_bytes()
    assert not (tmp_path / "executed").exists()


def test_code_that_fails_is_named_in_one_line(own_model: Path) -> None:
    (own_model / "modeling_own.py").write_text("from transformers import NoSuchModel\n")
    with pytest.raises(ValueError, match=rf"^the Python code in {own_model} failed \(ImportError: cannot import name"):
        model_loading.load(str(own_model), trust_remote_code=True)


def test_template_of_a_trusted_tokenizer_is_checked_and_set(own_tokenizer: Path, tmp_path: Path) -> None:
    set_template.main(str(own_tokenizer), str(ALPACA), str(tmp_path / "out"), trust_remote_code=True)
    assert (tmp_path / "executed").exists()
    assert (tmp_path / "out/tokenization_own.py").is_file()


def test_untrusted_code_of_llamas_tokenizer_class_is_replaced_by_exact_files_in_demos_and_merge(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers would use its LlamaTokenizer, which gives other ids than SentencePiece for two spaces in a row."""
    folder = with_own_tokenizer(tiny_checkpoint, tmp_path / "model")
    change(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    change(folder / "config.json", model_type="llama")
    trusted = model_loading.load(str(folder), trust_remote_code=True).tokenizer
    assert type(trusted).__name__ == "OwnTokenizer"
    (tmp_path / "executed").unlink()
    (folder / "tokenizer.json").unlink()
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    text = "  two  spaces 李白"
    demo = model_loading.load(str(folder)).encoder
    assert demo.plain_text_ids(text) == [1, *oracle.encode(text)]
    notice = f"notice: {folder} has Python code for its tokenizer, which is not executed without --trust_remote_code; "
    assert capsys.readouterr().err.count(notice + "tokenizer.model is read instead\n") == 1
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter", target_modules=["q_proj"])
    for file in adapter.glob("tokenizer*"):
        file.unlink()
    merged = tmp_path / "merged"
    weight_diff.merge(str(folder), [str(adapter)], str(merged))
    assert model_loading.load(str(merged)).encoder.plain_text_ids(text) == [1, *oracle.encode(text)]
    assert (merged / "tokenizer.json").is_file()
    assert not (tmp_path / "executed").exists()
    assert type(model_loading.load(str(merged), trust_remote_code=True).tokenizer).__name__ == "OwnTokenizer"


COPIED = (
    "modeling_own.py",
    "tokenization_own.py",
    "vocab.txt",
    "own.tiktoken",
    "additional_chat_templates/tool.jinja",
)


@pytest.fixture
def rich_model(own_model: Path, tmp_path: Path) -> Path:
    """A model and tokenizer with own code, and with files that only models with own code have."""
    folder = with_own_tokenizer(own_model, tmp_path / "rich")
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    for name in COPIED[2:]:
        (folder / name).write_text(f"{name} {{{{ messages[0].content }}}}")
    return folder


def check_copied(source: Path, target: Path) -> None:
    for name in COPIED:
        assert (target / name).read_bytes() == (source / name).read_bytes(), (target.name, name)
    for name in ("config.json", "tokenizer_config.json"):
        assert (
            json.loads((target / name).read_text())["auto_map"] == json.loads((source / name).read_text())["auto_map"]
        )


def test_tools_copy_own_code_and_its_files_without_executing_it(
    rich_model: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter", target_modules=["q_proj"])
    for file in adapter.glob("tokenizer*"):  # the adapter's tokenizer would replace that of the base
        file.unlink()
    tool, out = "tools/weight_diff.py", tmp_path / "out"
    out.mkdir()
    merged = ("--path_zhixi", rich_model, "--path_lora", adapter, "--path_sfted", out / "merged")
    exported = ("--base_model", rich_model, "--lora_model", adapter, "--output_dir", out / "exported")
    for script, *words in (
        (tool, "make_diff", "--path_raw", tiny_checkpoint, "--path_tuned", rich_model, "--path_diff", out / "diff"),
        (tool, "recover", "--path_raw", tiny_checkpoint, "--path_diff", out / "diff", "--path_tuned", out / "again"),
        (tool, "merge", *merged),
        ("tools/export_hf_checkpoint.py", *exported),
    ):
        run_in_process(str(script), *words)
    assert {folder.name for folder in out.iterdir()} == {"diff", "again", "merged", "exported"}
    for folder in out.iterdir():
        check_copied(rich_model, folder)
    assert not (tmp_path / "executed").exists()


@needs_bitsandbytes
@pytest.mark.slow
def test_quantised_model_keeps_own_code_and_own_output_matrix(
    rich_model: Path, tmp_path: Path, run_script: RunScript
) -> None:
    """The base is marked as tied, but has an output matrix.

    The result keeps this matrix, and has the logits of the base quantised on loading.
    """
    change(rich_model / "config.json", tie_word_embeddings=True)
    out = tmp_path / "nf4"
    env = {"PYTHONPATH": QUANTISED, "OMP_NUM_THREADS": 1, "HF_MODULES_CACHE": tmp_path / "cache"}
    given = ("--model_path", rich_model, "--output_dir", out, "--method", "nf4", "--trust_remote_code")
    run_script("tools/quantize.py", *given, env=env)
    check_copied(rich_model, out)
    before, after = (load_file(folder / "model.safetensors") for folder in (rich_model, out))
    assert torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    code = "import sys; from own_code_models import compare_nf4; compare_nf4(*sys.argv[1:])"
    env["PYTHONPATH"] = os.pathsep.join(map(str, (QUANTISED, REPOSITORY / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", code, rich_model, out], env=os.environ | {k: str(v) for k, v in env.items()},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("config.json", '"hidden_size": 64', '"hidden_size": "F16"', "Field 'hidden_size' expected int, got str"),
        ("tokenizer_config.json", '"bos_token": "<s>"', '"bos_token": []', "Special token bos_token has to be"),
        ("tokenizer_config.json", '"model_max_length": 1', '"model_max_length": true, "x": 1', "is True, not a number"),
        ("tokenizer.json", '"id": 0,', '"id": 1e30,', "invalid type: floating point `1e.30`, expected u32"),
    ],
)
def test_damaged_value_of_a_folder_without_code_is_one_line(
    tiny_checkpoint: Path, tmp_path: Path, file: str, old: str, new: str, reason: str
) -> None:
    """For such values, transformers and tokenizers raise TypeError, their own exceptions, or plain Exception."""
    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    text = (base / file).read_text()
    assert old in text
    (base / file).write_text(text.replace(old, new, 1))
    auto_class: Any = AutoConfig if file == "config.json" else AutoTokenizer
    with pytest.raises(ValueError, match=rf"\A[^\n]*base cannot be loaded \([^\n]*{reason}[^\n]*; check its files\Z"):
        from_folder(auto_class, base, False)


def test_weights_of_another_shape_are_reported_to_the_caller(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """transformers raises RuntimeError, which refers to a table that it has printed."""
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    change(base / "config.json", intermediate_size=96)
    _, loaded = from_folder(AutoModelForCausalLM, base, False, output_loading_info=True)
    assert len(loaded["mismatched_keys"]) == 6
    with pytest.raises(ValueError, match=r"\A[^\n]*base cannot be loaded \(RuntimeError: [^\n]*\Z"):
        from_folder(AutoModelForCausalLM, base, False)


def test_folder_that_names_code_of_another_repository_is_not_told_to_read_files(tmp_path: Path) -> None:
    assert str(own_code_error(tmp_path)).endswith(
        "needs Python code that it does not contain; download its Python files, too"
    )
