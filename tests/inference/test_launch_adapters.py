"""launch_adapters.py: adapters are checked, and vLLM's options for them are set, before the server starts."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_prompts.prompt_encoding import PromptEncoder
from conftest import REPOSITORY, RunScript, free_port
from lora_adapters import NARROW, make_adapter, other_model
from safetensors.torch import load_file, save_file
from server_launch.launch_adapters import adapter_prompt_encoder, check_adapters, check_served_adapter
from server_launch.launch_args import precheck
from server_launch.launch_presets import check_gpu_options
from test_readme import commands
from transformers import AutoTokenizer

LAUNCHER = "inference/launch_vllm.py"


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an adapter with rank 9 in one layer and rank 4 in the others; tests must not modify the folder."""
    folder = tmp_path_factory.mktemp("one") / "adapter"
    return make_adapter(
        tiny_checkpoint, folder, r=4, target_modules=["q_proj", "embed_tokens"], rank_pattern={"layers.1.*q_proj": 9}
    )


UNSUPPORTED: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True}, "saved": {"modules_to_save": ["lm_head"]}, "huge": {"r": 600},
}  # fmt: skip


def changed(adapter: Path, folder: Path, **settings: Any) -> Path:
    """Return a copy of an adapter with other settings in its adapter_config.json."""
    shutil.copytree(adapter, folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return folder


def with_tensors(adapter: Path, folder: Path, **tensors: torch.Tensor | None) -> Path:
    """Return a copy of an adapter with tensors added, replaced or (None) removed; __ in a name stands for a dot."""
    shutil.copytree(adapter, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        weights.pop(name.replace("__", "."), None)
        if tensor is not None:
            weights[name.replace("__", ".")] = tensor
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


Q_A = "base_model__model__model__layers__0__self_attn__q_proj__lora_A__weight"
Q_BIAS = "base_model__model__model__layers__0__self_attn__q_proj__bias"


def test_check_served_adapter_refuses_unfit_folders(adapter: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    missing = shutil.copytree(adapter, tmp_path / "missing")
    (missing / "adapter_model.safetensors").unlink()
    damaged = shutil.copytree(adapter, tmp_path / "damaged")
    (damaged / "adapter_model.safetensors").write_bytes(b"12345678{")
    empty = tmp_path / "empty"
    empty.mkdir()
    narrow = make_adapter(
        other_model(tiny_checkpoint, tmp_path / "other", **NARROW), tmp_path / "narrow", target_modules=["embed_tokens"]
    )
    for folder, message in {
        tmp_path / "none": "does not exist; give the folder of an adapter",
        empty: "has no adapter_config.json",
        tiny_checkpoint: "is a full checkpoint, not an adapter",
        missing: "has no adapter_model.safetensors",
        damaged: "/adapter_model.safetensors is damaged",
        changed(adapter, tmp_path / "loha", peft_type="LOHA"): "is an adapter of type LOHA",
        with_tensors(adapter, tmp_path / "bias", **{Q_BIAS: torch.zeros(64)}): "holds bias of model.layers.0",
        with_tensors(adapter, tmp_path / "half", **{Q_A: None}): "has only one of lora_A and lora_B",
        with_tensors(adapter, tmp_path / "wide", **{Q_A: torch.zeros(4, 128)}): "has the shape 64 by 128 for ",
        narrow: "has the shape 800 by 32 for model.embed_tokens, but ",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as error:
            check_served_adapter("ie", str(folder), str(tiny_checkpoint))
        assert str(error.value).startswith(f"adapter ie: {folder}")
        assert "\n" not in str(error.value)
    check_served_adapter("ie", str(adapter), str(tiny_checkpoint))
    check_served_adapter("ie", str(adapter), "org/on-the-hub")


def test_check_served_adapter_reads_bin_files(adapter: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(adapter, tmp_path / "old")
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    check_served_adapter("ie", str(folder), str(tiny_checkpoint))
    torch.save({name: weight[:, :1] for name, weight in weights.items()}, folder / "adapter_model.bin")
    with pytest.raises(
        ValueError, match=r"lora_(embedding_)?A and lora_(embedding_)?B of .* have shapes that do not match"
    ):
        check_served_adapter("ie", str(folder), str(tiny_checkpoint))


def test_adapter_names_must_be_unique(adapter: Path, tiny_checkpoint: Path) -> None:
    base, folder = str(tiny_checkpoint), str(adapter)
    check_adapters([("a", folder), ("b", folder)], base)
    for named, served, message in (
        ([("a", folder), ("a", folder)], (), "the name a is already used; give each adapter its own"),
        ([(base, folder)], (), "is already used; choose another"),
        ([("base", folder)], ("base",), "the name base is already used; choose another"),
        ([("", folder)], (), "neither may be empty"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            check_adapters(named, base, served)
    twice = ["--lora-modules", f"a={folder}", "--lora-modules", f"b={folder}"]
    with pytest.raises(ValueError, match="given twice"):
        precheck(["--model", base, *twice])


def test_adapters_own_template_takes_precedence(adapter: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = PromptEncoder(AutoTokenizer.from_pretrained(tiny_checkpoint), "{{ bos_token }}base")
    assert adapter_prompt_encoder(str(adapter), base).template == "{{ bos_token }}base"
    own = shutil.copytree(adapter, tmp_path / "own")
    (own / "chat_template.jinja").write_text("{{ bos_token }}own")
    assert adapter_prompt_encoder(str(own), base).template == "{{ bos_token }}own"
    for file in own.glob("tokenizer*"):
        file.unlink()
    bare = adapter_prompt_encoder(str(own), base)
    assert (bare.template, bare.tokenizer) == ("{{ bos_token }}own", base.tokenizer)


def test_base_tokenizer_is_used_if_the_adapter_tokenizer_lacks_added_tokens(
    adapter: Path, tiny_checkpoint: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.add_tokens(["<new>"])
    assert adapter_prompt_encoder(str(adapter), PromptEncoder(tokenizer)).tokenizer is tokenizer


def test_adapter_tokenizer_with_other_ids_is_refused(adapter: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Two pieces are swapped in the adapter's tokenizer; vLLM would decode answers with the base's tokenizer."""
    folder = shutil.copytree(adapter, tmp_path / "exchanged")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    ids = content["model"]["vocab"]
    one, two = [piece for piece, index in ids.items() if index in (500, 600)]
    ids[one], ids[two] = ids[two], ids[one]
    file.write_text(json.dumps(content))
    base = PromptEncoder(AutoTokenizer.from_pretrained(tiny_checkpoint))
    message = r"another tokenizer than the base: 2 pieces differ, '.+' has id \d+ in the adapter and \d+ in the base"
    with pytest.raises(ValueError, match=message):
        adapter_prompt_encoder(str(folder), base)
    file.write_text("{")
    with pytest.raises(ValueError, match="the tokenizer cannot be read"):
        adapter_prompt_encoder(str(folder), base)


@pytest.mark.parametrize(
    ("options", "format", "message"),
    [
        ({"distributed_executor_backend": "ray"}, "", "Ray on GPUs only"),
        ({"pipeline_parallel_size": 2, "enforce_eager": True}, "", "only compiled models without adapters"),
        ({"pipeline_parallel_size": 2, "enable_lora": True}, "", "only compiled models without adapters"),
        ({"dtype": "float32"}, "pack-quantized", "4-bit weights in half precision only"),
        ({"enable_lora": True}, "int-quantized", "no adapters on INT8 weights"),
        ({"enable_lora": True, "fully_sharded_loras": True}, "", "remove --fully-sharded-loras"),
        ({"enable_lora": True, "worker_cls": "own.Worker"}, "", "need the launcher's preset of --worker-cls"),
        ({"pipeline_parallel_size": 2}, "float-quantized", None),
        ({"enable_lora": True}, "pack-quantized", None),
    ],
)
def test_check_gpu_options_refuses_options_that_need_a_gpu(
    options: dict[str, Any], format: str, message: str | None
) -> None:
    plain = dict.fromkeys(("distributed_executor_backend", "enforce_eager", "enable_lora", "dtype"))
    usual = {"pipeline_parallel_size": 1, "worker_cls": "auto", "fully_sharded_loras": False}
    args = argparse.Namespace(**(plain | usual | options))
    config = {"quantization_config": {"format": format}} if format else {}
    if message is None:
        check_gpu_options(args, config)
    else:
        with pytest.raises(ValueError, match=message):
            check_gpu_options(args, config)


PARSE_EACH = """
import contextlib, io, json, sys
from server_launch.launch_adapters import check_prompts
from server_launch.launch_args import parse_server_args
names = "enable_lora", "max_lora_rank", "max_loras", "max_cpu_loras", "nnodes", "dtype"
for line in json.load(sys.stdin):
    notes = io.StringIO()
    try:
        with contextlib.redirect_stderr(notes):
            args = parse_server_args(line)
            message = check_prompts(args)
        print("=" + json.dumps([{name: vars(args)[name] for name in names}, notes.getvalue(), message]))
    except ValueError as error:
        print("=" + json.dumps(str(error)))
"""


def parsed(lines: list[list[str]]) -> list[Any]:
    """Parse all command lines in one process; return [settings, notices, notices on prompts] or the error for each."""
    done = subprocess.run(
        [sys.executable, "-c", PARSE_EACH], input=json.dumps(lines), capture_output=True, text=True, timeout=580,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "inference"), "VLLM_CPU_OMP_THREADS_BIND": "auto"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith("=")]


@pytest.mark.integration
def test_presets_for_adapters_keep_given_options_or_refuse_them(
    adapter: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model_options = ["--model", str(tiny_checkpoint), "--port", str(free_port()), "--lora-modules"]
    nine = [f"a{at}={adapter}" for at in range(9)]
    template = tmp_path / "t.jinja"
    template.write_text("{{ bos_token }}{{ messages[0].content }}")
    own = shutil.copytree(adapter, tmp_path / "own")
    (own / "chat_template.jinja").write_text("{{ bos_token }}own")
    worded = shutil.copytree(own, tmp_path / "worded")
    (worded / "extraction.json").write_text('{"tasks": {"ner": {"en": {"instruction": "List."}}}}')
    (broken := shutil.copytree(adapter, tmp_path / "broken") / "chat_template.jinja").write_text("{% for %}")
    (tasks := shutil.copytree(adapter, tmp_path / "tasks") / "extraction.json").write_text("[]")
    unsupported = {
        name: make_adapter(tiny_checkpoint, tmp_path / name, target_modules=["q_proj"], **settings)
        for name, settings in UNSUPPORTED.items()
    }  # fmt: skip
    lines: dict[str, tuple[list[str], Any]] = {
        "one": ([*model_options, f"a={adapter}"], (True, 16, 1, None)),
        "nine": ([*model_options, *nine], (True, 16, 8, 9)),
        "given": (
            [*model_options, *nine, "--max-lora-rank", "64", "--max-loras", "2", "--max-cpu-loras", "4"],
            (True, 64, 2, 4),
        ),
        "none": (model_options[:-1], (None, 16, 1, None)),
        "template": ([*model_options, f"a={own}", "--template_path", str(template)], (True, 16, 1, None)),
        "worded": ([*model_options, f"a={worded}", "--template_path", str(template)], (True, 16, 1, None)),
        "rank": (
            [*model_options, f"a={adapter}", "--max-lora-rank", "8"],
            "--max-lora-rank 8 is less than the rank 9 of a",
        ),
        "off": ([*model_options, f"a={adapter}", "--no-enable-lora"], "--no-enable-lora and --lora-modules contradict"),
        "json": ([*model_options, '{"name": "a"}'], "Invalid fields for --lora-modules"),
        "dora": (
            [*model_options, f"a={unsupported['dora']}"],
            "holds lora_magnitude_vector of model.layers.0.self_attn.q_proj, which vLLM does not load",
        ),
        "saved": ([*model_options, f"a={unsupported['saved']}"], "holds weight of lm_head, which vLLM does not load"),
        "huge": ([*model_options, f"a={unsupported['huge']}"], "LoRA rank 600 is greater than"),
        "odd": (
            [*model_options, f"a={changed(adapter, tmp_path / 'odd', r=5)}"],
            "its adapter_config.json says 5; copy both files again",
        ),
        "broken": ([*model_options, f"a={broken.parent}"], "line 1: the template is not valid Jinja"),
        "tasks": ([*model_options, f"a={tasks.parent}"], "/extraction.json does not have the form "),
    }
    results = dict(zip(lines, parsed([line for line, _ in lines.values()]), strict=True))
    for name, (_, expected) in lines.items():
        if isinstance(expected, str):
            assert isinstance(results[name], str) and expected in results[name], results[name]
        else:
            assert tuple(results[name][0].values())[:4] == expected, results[name]
    assert "notice: adapters a: --enable-lora --max-lora-rank 16 --max-loras 1\n" in results["one"][1]
    assert "a7, a8: --enable-lora\n" in results["given"][1]
    without_template = [line.partition(" has no chat template, ")[0] for line in results["one"][2]]
    assert without_template == [str(tiny_checkpoint), f"adapter a: {adapter}"]
    kept, wording = results["template"][2]
    assert kept == "adapter a keeps its own chat template; --template_path is for the base"
    assert wording.startswith(f"{tiny_checkpoint}, adapter a: no extraction.json, so /extract asks in its default ")
    assert results["worded"][2] == [kept, wording.replace(", adapter a", "")]


@pytest.mark.integration
def test_command_lines_of_the_readme_are_accepted(adapter: Path, tiny_checkpoint: Path) -> None:
    """Every launch_vllm.py line of the README, with existing folders, is accepted unless it needs a GPU."""
    lines = []
    for command in commands(REPOSITORY / "inference/README.md"):
        arguments = shlex.split(command, comments=True)
        if LAUNCHER not in arguments:
            continue
        arguments = arguments[arguments.index(LAUNCHER) + 1 :]
        for at, argument in enumerate(arguments):
            if argument == "--model":
                arguments[at + 1] = str(tiny_checkpoint)
            elif argument in ("--port", "--host"):
                arguments[at + 1] = {"--port": str(free_port()), "--host": "127.0.0.1"}[argument]
            elif re.fullmatch(r"[\w-]+=[\w/.-]+", argument):
                arguments[at] = f"{argument.partition('=')[0]}={adapter}"
        lines.append(arguments)
    assert lines
    for line, result in zip(lines, parsed(lines), strict=True):
        without_a_gpu = isinstance(result, str) and ("Ray on GPUs" in result or "without a GPU" in result)
        assert without_a_gpu or isinstance(result, list), (line, result)


def test_launcher_refuses_a_missing_adapter_folder(run_script: RunScript, tiny_checkpoint: Path) -> None:
    error = run_script(LAUNCHER, "--model", tiny_checkpoint, "--lora-modules", "ie=runs/none", status=2).stderr
    assert error.startswith("error: adapter ie: runs/none does not exist; give the folder of an adapter")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "word", ["ie", "ie=", "=runs/ie", "ie=a,b", '{"name": "ie"}', '{"name": "ie", "path": 7}', "[1]"]
)
def test_precheck_refuses_an_adapter_without_a_folder(tiny_checkpoint: Path, word: str) -> None:
    with pytest.raises(ValueError, match="--lora-modules takes NAME=FOLDER, or .* not " + re.escape(repr(word))):
        precheck(["--model", str(tiny_checkpoint), "--lora-modules", word])


def test_precheck_reads_an_adapter_in_json(tiny_checkpoint: Path, adapter: Path) -> None:
    def command(folder: object) -> list[str]:
        return ["--model", str(tiny_checkpoint), "--lora-modules", json.dumps({"name": "ie", "path": str(folder)})]

    precheck(command(adapter))
    with pytest.raises(FileNotFoundError, match="adapter ie: runs/a,b does not exist"):
        precheck(command("runs/a,b"))


def test_launcher_refuses_an_adapter_without_a_folder(run_script: RunScript, tiny_checkpoint: Path) -> None:
    error = run_script(LAUNCHER, "--model", tiny_checkpoint, "--lora-modules", "ie", status=2).stderr
    assert error.startswith("error: --lora-modules takes NAME=FOLDER, or ")
    assert error.count("\n") == 1


def test_serve_script_passes_adapters_on(tiny_checkpoint: Path, adapter: Path) -> None:
    settings = {"PYTHON": "echo", "MODEL": str(tiny_checkpoint), "ADAPTERS": f"a={adapter} b={adapter}"}
    done = subprocess.run(
        ["bash", "inference/scripts/serve.sh", "--seed", "1"],
        env=os.environ | settings, capture_output=True, text=True, cwd=REPOSITORY, check=True,
    )  # fmt: skip
    assert done.stdout.endswith(f"--lora-modules a={adapter} b={adapter} --seed 1\n")
