"""launch_adapters.py, adapter_folders.py, adapter_prompts.py, cpu_limits.py: told before it is loaded."""

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
from server_launch.adapter_folders import check_adapter
from server_launch.adapter_prompts import adapter_prompt
from server_launch.cpu_limits import check_limits
from server_launch.launch_adapters import check_adapters, named_adapters
from test_readme import commands
from transformers import AutoTokenizer

LAUNCHER = "inference/launch_vllm.py"


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of rank 4, 9 in one layer; tests do not write into it."""
    folder = tmp_path_factory.mktemp("one") / "adapter"
    return make_adapter(
        tiny_checkpoint, folder, r=4, target_modules=["q_proj", "embed_tokens"], rank_pattern={"layers.1.*q_proj": 9}
    )


def changed(adapter: Path, folder: Path, **settings: Any) -> Path:
    """A copy with other settings in its adapter_config.json."""
    shutil.copytree(adapter, folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return folder


def with_tensors(adapter: Path, folder: Path, **tensors: torch.Tensor | None) -> Path:
    """A copy with tensors added, replaced or, where None, taken away; __ in a name is a dot."""
    shutil.copytree(adapter, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        weights.pop(name.replace("__", "."), None)
        if tensor is not None:
            weights[name.replace("__", ".")] = tensor
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


# --- folders ----------------------------------------------------------------------------------------------------------

Q_A = "base_model__model__model__layers__0__self_attn__q_proj__lora_A__weight"
Q_BIAS = "base_model__model__model__layers__0__self_attn__q_proj__bias"


def test_a_folder_that_is_no_adapter_or_not_this_bases(adapter: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    missing = shutil.copytree(adapter, tmp_path / "missing")
    (missing / "adapter_model.safetensors").unlink()
    damaged = shutil.copytree(adapter, tmp_path / "damaged")
    (damaged / "adapter_model.safetensors").write_bytes(b"12345678{")
    empty = tmp_path / "empty"
    empty.mkdir()
    narrow = make_adapter(
        other_model(tiny_checkpoint, tmp_path / "other", **NARROW), tmp_path / "narrow", target_modules=["embed_tokens"]
    )
    for folder, said in {
        tmp_path / "none": "does not exist; --lora-modules takes NAME=FOLDER",
        empty: "has no adapter_config.json",
        tiny_checkpoint: "is a whole checkpoint and no adapter; serve it by itself",
        missing: "has no adapter_model.safetensors",
        damaged: "/adapter_model.safetensors is damaged",
        changed(adapter, tmp_path / "loha", peft_type="LOHA"): "is an adapter of type LOHA",
        with_tensors(adapter, tmp_path / "bias", **{Q_BIAS: torch.zeros(64)}): "holds base_model.model.model.layers.0",
        with_tensors(adapter, tmp_path / "half", **{Q_A: None}): "has one matrix of the two",
        with_tensors(adapter, tmp_path / "wide", **{Q_A: torch.zeros(4, 128)}): "as a matrix of 64 by 128, which in",
        narrow: "changes model.embed_tokens as a matrix of 800 by 32, which in",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(said)) as error:
            check_adapter("ie", str(folder), str(tiny_checkpoint))
        assert str(error.value).startswith(f"adapter ie: {folder}")
        assert "\n" not in str(error.value)
    check_adapter("ie", str(adapter), str(tiny_checkpoint))
    check_adapter("ie", str(adapter), "org/on-the-hub")


def test_an_adapter_of_old_is_looked_into_as_well(adapter: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(adapter, tmp_path / "old")
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    check_adapter("ie", str(folder), str(tiny_checkpoint))
    torch.save({name: weight[:, :1] for name, weight in weights.items()}, folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="changes model"):
        check_adapter("ie", str(folder), str(tiny_checkpoint))


def test_names_are_taken_once(adapter: Path, tiny_checkpoint: Path) -> None:
    base, folder = str(tiny_checkpoint), str(adapter)
    assert named_adapters([[f"a={folder}", json.dumps({"name": "b", "path": folder}), "nonsense"]]) == [
        ("a", folder), ("b", folder),
    ]  # fmt: skip
    check_adapters([("a", folder), ("b", folder)], base)
    for named, served, said in (
        ([("a", folder), ("a", folder)], (), "the name a is taken already; give each its own"),
        ([(base, folder)], (), "is taken already; give it another"),
        ([("base", folder)], ("base",), "the name base is taken already; give it another"),
        ([("", folder)], (), "neither may be empty"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            check_adapters(named, base, served)
    with pytest.raises(ValueError, match="given twice"):
        named_adapters([["a=x"], ["b=y"]])


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_an_adapters_own_template_and_words_go_first(adapter: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = PromptEncoder(AutoTokenizer.from_pretrained(tiny_checkpoint), "{{ bos_token }}base")
    assert adapter_prompt(str(adapter), base).template == "{{ bos_token }}base"
    own = shutil.copytree(adapter, tmp_path / "own")
    (own / "chat_template.jinja").write_text("{{ bos_token }}own")
    assert adapter_prompt(str(own), base).template == "{{ bos_token }}own"
    for file in own.glob("tokenizer*"):
        file.unlink()
    bare = adapter_prompt(str(own), base)
    assert (bare.template, bare.tokenizer) == ("{{ bos_token }}own", base.tokenizer)


def test_a_tokenizer_with_other_ids_is_refused(adapter: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Two pieces that changed places; vLLM would write the answer with the base's."""
    folder = shutil.copytree(adapter, tmp_path / "words")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    one, two = [piece for piece, index in words.items() if index in (500, 600)]
    words[one], words[two] = words[two], words[one]
    file.write_text(json.dumps(content))
    base = PromptEncoder(AutoTokenizer.from_pretrained(tiny_checkpoint))
    with pytest.raises(
        ValueError, match=r"another tokenizer than the base: 2 pieces differ; '.+', for one, has id \d+"
    ):
        adapter_prompt(str(folder), base)
    file.write_text("{")
    with pytest.raises(ValueError, match="the tokenizer cannot be read"):
        adapter_prompt(str(folder), base)


# --- without a GPU ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "format", "said"),
    [
        ({"distributed_executor_backend": "ray"}, "", "Ray on GPUs only"),
        ({"pipeline_parallel_size": 2, "enforce_eager": True}, "", "compiled models without adapters only"),
        ({"pipeline_parallel_size": 2, "enable_lora": True}, "", "compiled models without adapters only"),
        ({"dtype": "float32"}, "pack-quantized", "4-bit weights in half precision only"),
        ({"enable_lora": True}, "int-quantized", "no adapters on INT8 weights"),
        ({"pipeline_parallel_size": 2}, "float-quantized", None),
        ({"enable_lora": True}, "pack-quantized", None),
    ],
)
def test_what_vllm_does_not_do_without_a_gpu(asked: dict[str, Any], format: str, said: str | None) -> None:
    plain = dict.fromkeys(("distributed_executor_backend", "enforce_eager", "enable_lora", "dtype"))
    args = argparse.Namespace(**(plain | {"pipeline_parallel_size": 1} | asked))
    config = {"quantization_config": {"format": format}} if format else {}
    if said is None:
        check_limits(args, config)
    else:
        with pytest.raises(ValueError, match=said):
            check_limits(args, config)


# --- the command line -------------------------------------------------------------------------------------------------

PARSE_EACH = """
import contextlib, io, json, sys
from launch_vllm import check_adapter_prompts, parse
names = "enable_lora", "max_lora_rank", "max_loras", "max_cpu_loras", "nnodes", "dtype"
for line in json.load(sys.stdin):
    notes = io.StringIO()
    try:
        with contextlib.redirect_stderr(notes):
            args = parse(line)
            said = check_adapter_prompts(args)
        print("=" + json.dumps([{name: vars(args)[name] for name in names}, notes.getvalue(), said]))
    except ValueError as error:
        print("=" + json.dumps(str(error)))
"""


def parsed(lines: list[list[str]]) -> list[Any]:
    """For each command line [settings, notes, notes about templates] or the error; one process imports vLLM once."""
    done = subprocess.run(
        [sys.executable, "-c", PARSE_EACH], input=json.dumps(lines), capture_output=True, text=True, timeout=580,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "inference"), "VLLM_CPU_OMP_THREADS_BIND": "auto"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith("=")]


def test_adapters_set_what_they_need_and_leave_what_is_given(
    adapter: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    here = ["--model", str(tiny_checkpoint), "--port", str(free_port()), "--lora-modules"]
    nine = [f"a{at}={adapter}" for at in range(9)]
    template = tmp_path / "t.jinja"
    template.write_text("{{ bos_token }}{{ messages[0].content }}")
    own = shutil.copytree(adapter, tmp_path / "own")
    (own / "chat_template.jinja").write_text("{{ bos_token }}own")
    (broken := shutil.copytree(adapter, tmp_path / "broken") / "chat_template.jinja").write_text("{% for %}")
    (tasks := shutil.copytree(adapter, tmp_path / "tasks") / "extraction.json").write_text("[]")
    dora, saved = {"use_dora": True}, {"modules_to_save": ["lm_head"]}
    lines: dict[str, tuple[list[str], Any]] = {
        "one": ([*here, f"a={adapter}"], (True, 16, 1, None)),
        "nine": ([*here, *nine], (True, 16, 8, 9)),
        "given": (
            [*here, *nine, "--max-lora-rank", "64", "--max-loras", "2", "--max-cpu-loras", "4"],
            (True, 64, 2, 4),
        ),
        "none": (here[:-1], (None, 16, 1, None)),
        "template": ([*here, f"a={own}", "--template_path", str(template)], (True, 16, 1, None)),
        "rank": ([*here, f"a={adapter}", "--max-lora-rank", "8"], "--max-lora-rank 8 is less than the rank 9 of a"),
        "off": ([*here, f"a={adapter}", "--no-enable-lora"], "--no-enable-lora and --lora-modules contradict"),
        "json": ([*here, '{"name": "a"}'], "Invalid fields for --lora-modules"),
        "dora": (
            [*here, f"a={changed(adapter, tmp_path / 'dora', **dora)}"],
            "vLLM does not yet support DoRA; merge it",
        ),
        "saved": ([*here, f"a={changed(adapter, tmp_path / 'saved', **saved)}"], "modules_to_save"),
        "huge": ([*here, f"a={changed(adapter, tmp_path / 'huge', r=600)}"], "LoRA rank 600 is greater than"),
        "odd": (
            [*here, f"a={changed(adapter, tmp_path / 'odd', r=5)}"],
            "and 5 in adapter_config.json; get both again",
        ),
        "broken": ([*here, f"a={broken.parent}"], "correct its chat_template.jinja"),
        "tasks": ([*here, f"a={tasks.parent}"], "/extraction.json has not the form "),
    }
    results = dict(zip(lines, parsed([line for line, _ in lines.values()]), strict=True))
    for name, (_, expected) in lines.items():
        if isinstance(expected, str):
            assert isinstance(results[name], str) and expected in results[name], results[name]
        else:
            assert tuple(results[name][0].values())[:4] == expected, results[name]
    assert "note: a beside the base: --enable-lora --max-lora-rank 16 --max-loras 1\n" in results["one"][1]
    assert "beside the base: --enable-lora\n" in results["given"][1]
    assert results["template"][2] == ["adapter a keeps its own chat template; --template_path is for the base"]


def test_the_readmes_command_lines_are_vllms(adapter: Path, tiny_checkpoint: Path) -> None:
    """Every launch_vllm.py line of the README is parsed, with folders that are here in place of its own."""
    lines = []
    for command in commands(REPOSITORY / "inference/README.md"):
        words = shlex.split(command, comments=True)
        if LAUNCHER not in words:
            continue
        words = words[words.index(LAUNCHER) + 1 :]
        for at, word in enumerate(words):
            if word == "--model":
                words[at + 1] = str(tiny_checkpoint)
            elif word in ("--port", "--host"):
                words[at + 1] = {"--port": str(free_port()), "--host": "127.0.0.1"}[word]
            elif re.fullmatch(r"[\w-]+=[\w/.-]+", word):
                words[at] = f"{word.partition('=')[0]}={adapter}"
        lines.append(words)
    assert lines
    for line, result in zip(lines, parsed(lines), strict=True):
        without_a_gpu = isinstance(result, str) and ("Ray on GPUs" in result or "without a GPU" in result)
        assert without_a_gpu or isinstance(result, list), (line, result)


def test_an_adapter_that_is_not_there_is_told_at_once(run_script: RunScript, tiny_checkpoint: Path) -> None:
    error = run_script(LAUNCHER, "--model", tiny_checkpoint, "--lora-modules", "ie=runs/none", status=2).stderr
    assert error.startswith("error: adapter ie: runs/none does not exist; --lora-modules takes NAME=FOLDER")
    assert error.count("\n") == 1


def test_the_recipe_hands_adapters_on(tiny_checkpoint: Path, adapter: Path) -> None:
    settings = {"PYTHON": "echo", "MODEL": str(tiny_checkpoint), "ADAPTERS": f"a={adapter} b={adapter}"}
    done = subprocess.run(
        ["bash", "inference/scripts/serve.sh", "--seed", "1"],
        env=os.environ | settings, capture_output=True, text=True, cwd=REPOSITORY, check=True,
    )  # fmt: skip
    assert done.stdout.endswith(f"--lora-modules a={adapter} b={adapter} --seed 1\n")
