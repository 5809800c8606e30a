"""launch_vllm.py, launch_presets.py, launch_checks.py: former options, presets without a GPU, errors, exit."""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import RunScript, free_port
from server_launch.launch_args import model_configuration, precheck
from server_launch.launch_checks import check_port, check_served_model
from server_launch.launch_presets import (
    bind_cores,
    check_devices,
    check_heads,
    kv_cache_gib,
    local_processes,
    preset_for_cpu,
    translate_former_options,
)
from server_launch.launch_values import JSON_LISTS, JSON_OBJECTS

LAUNCHER = "inference/launch_vllm.py"
ONE_COPY = {
    "data_parallel_size": 1, "data_parallel_size_local": None, "data_parallel_rank": None,
    "data_parallel_external_lb": False,
}  # fmt: skip
LLAMA_2_7B = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 4096}


def test_former_options_are_dropped_or_replaced_with_a_notice() -> None:
    published = "--port 8090 --model M --use-np-weights --max-num-batched-tokens 8000 --dtype half"
    current, notices = translate_former_options(published.split())
    assert current == ["--port", "8090", "--model", "M", "--max-num-batched-tokens", "8000", "--dtype", "half"]
    assert notices == ["--use-np-weights is dropped: vLLM reads safetensors directly"]
    assert translate_former_options(["--swap_space", "4", "--swap-space=4", "--seed", "1"])[0] == ["--seed", "1"]
    replaced = ["--load-format", "dummy"], ["--use-dummy-weights is replaced by --load-format dummy"]
    assert translate_former_options(["--use_dummy_weights"]) == replaced


@pytest.mark.parametrize(
    ("option", "text", "form"),
    [
        ("--allowed-origins", "*", "list of strings"),
        ("--allowed_origins", "7", "list of strings"),
        ("--allowed-methods", "[1]", "list of strings"),
        ("--allowed-headers", '{"a": 1}', "list of strings"),
        ("--hf-overrides", "x", "object"),
        ("--override-generation-config", '{"a":', "object"),
        ("--compilation-config", "[1]", "object"),
        ("--default-chat-template-kwargs", "7", "object"),
        ("--speculative_config", "[" * 10**5, "object"),
    ],
)
def test_precheck_refuses_json_of_a_wrong_type(tiny_checkpoint: Path, option: str, text: str, form: str) -> None:
    with pytest.raises(ValueError, match=f"takes a JSON {form} such as .*, not ") as raised:
        precheck(["--model", str(tiny_checkpoint), option, text])
    assert str(raised.value).startswith(option.replace("_", "-"))


def test_precheck_accepts_json(tiny_checkpoint: Path) -> None:
    lists = ["--allowed-origins", '["*"]', "--allowed-methods", "[]", "--hf-overrides", "{}", "--pooler-config", "None"]
    precheck(["--model", str(tiny_checkpoint), *lists, "--compilation-config.mode", "0"])


def test_json_options_are_those_of_vllms_parser() -> None:
    """Every option that vLLM parses as JSON is checked, except those that also take other values."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    found = set()
    for action in make_arg_parser(FlexibleArgumentParser())._actions:
        cells = [cell.cell_contents for cell in getattr(action.type, "__closure__", None) or ()]
        inner = [cell.cell_contents for kind in cells for cell in getattr(kind, "__closure__", None) or ()]
        names = {getattr(kind, "__name__", "") for kind in (action.type, *cells, *inner)}
        if names & {"loads", "parse_dataclass", "union_dict_and_str"}:
            found.add(action.option_strings[0].removeprefix("--"))
    assert found == {*JSON_LISTS, *JSON_OBJECTS, "additional-config", "pt-load-map-location"}


def test_kv_cache_holds_one_context() -> None:
    assert kv_cache_gib(LLAMA_2_7B) == 4
    assert kv_cache_gib(LLAMA_2_7B, context=1024) == 1
    assert kv_cache_gib({"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}) == 1
    assert kv_cache_gib({}) == 1


@pytest.mark.parametrize(
    ("config", "context", "gib"),
    [  # bytes: 2 matrices x layers x key-value heads x width of a head x 4 bytes x tokens
        ({"model_type": "qwen3", "hidden_size": 1024, "num_key_value_heads": 8}, 32768, 8),
        ({"model_type": "mistral", "hidden_size": 4096}, 131072, 32),
        ({"model_type": "llama", "hidden_size": 4096}, 2048, 2),
    ],
)
def test_kv_cache_uses_the_defaults_of_transformers_for_missing_keys(
    tmp_path: Path, config: dict[str, Any], context: int, gib: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 32, "num_hidden_layers": 32}))
    assert kv_cache_gib(model_configuration(tmp_path)) == gib
    assert model_configuration(tmp_path)["max_position_embeddings"] == context


def test_bind_cores_divides_cores_evenly() -> None:
    assert bind_cores([0, 1, 2, 3], 2) == "0,1|2,3"
    assert bind_cores([4, 6, 8], 2) == "4|6,8"
    with pytest.raises(ValueError, match=r"4 processes .* need 4 cores, this machine has 2"):
        bind_cores([0, 1], 4)


def test_processes_of_this_machine_are_copies_times_parts() -> None:
    two_by_three = {"tensor_parallel_size": 2, "pipeline_parallel_size": 3} | ONE_COPY
    for given, processes in (
        ({}, 6),
        ({"data_parallel_size": 4}, 24),
        ({"data_parallel_size": 4, "data_parallel_size_local": 2}, 12),
        ({"data_parallel_size": 4, "data_parallel_size_local": 0}, 0),
        ({"data_parallel_size": 4, "data_parallel_rank": 3}, 6),
        ({"data_parallel_size": 4, "data_parallel_external_lb": True}, 6),
    ):
        assert local_processes(argparse.Namespace(**two_by_three | given)) == processes
    with pytest.raises(ValueError, match=r"^8 processes .* need 8 GPUs, this machine has 1; lower --data"):
        check_devices(8, 1, "GPU")
    check_devices(8, 8, "GPU")


def test_cpu_presets_keep_the_users_options() -> None:
    left_open = dict.fromkeys(
        ("enforce_eager", "compilation_config", "optimization_level", "dtype", "kv_cache_memory_bytes", "max_model_len",
         "enable_lora", "distributed_executor_backend", "enable_chunked_prefill", "max_num_batched_tokens")
    ) | {"worker_cls": "auto"}  # fmt: skip
    one = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "nnodes": 1} | ONE_COPY
    args, environment = argparse.Namespace(**left_open, **one), dict[str, str]()
    expected = preset_for_cpu(args, LLAMA_2_7B | {"dtype": "float32"}, environment)
    assert (args.enforce_eager, args.dtype, environment) == (True, "float32", {"VLLM_CPU_KVCACHE_SPACE": "4"})
    assert args.enable_chunked_prefill is False
    assert len(expected) == 4
    chosen = argparse.Namespace(
        **(left_open | one | {"enforce_eager": False, "dtype": "half", "enable_chunked_prefill": True})
    )
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2"}
    assert preset_for_cpu(chosen, {"dtype": "float32"}, environment) == []
    assert (chosen.enforce_eager, chosen.dtype, environment["VLLM_CPU_KVCACHE_SPACE"]) == (False, "half", "2")
    few = argparse.Namespace(**(left_open | one | {"max_num_batched_tokens": 4000}))
    assert any("a request with a seed can crash the engine" in line for line in preset_for_cpu(few, LLAMA_2_7B, {}))
    assert few.enable_chunked_prefill is None  # vLLM would refuse to start


def test_check_heads_refuses_widths_without_a_cpu_kernel() -> None:
    """vLLM would start and fail at the first request."""
    with pytest.raises(ValueError, match="head dimension of this model is 16"):
        check_heads({"hidden_size": 64, "num_attention_heads": 4})
    check_heads({"hidden_size": 64, "num_attention_heads": 4, "head_dim": 64})
    check_heads(LLAMA_2_7B)
    check_heads({})


def test_check_model_distinguishes_hub_names_from_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_served_model("org/name") is False
    (tmp_path / "org").mkdir()
    with pytest.raises(FileNotFoundError, match="org/name does not exist"):
        check_served_model("org/name")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_served_model("./name")


def broken(kind: str, checkpoint: Path, folder: Path) -> Path:
    """Return a copy of a checkpoint that cannot be served because of the given defect."""
    shutil.copytree(checkpoint, folder)
    if kind == "no checkpoint":
        (folder / "config.json").unlink()
    elif kind == "adapter":
        (folder / "config.json").rename(folder / "adapter_config.json")
    elif kind == "no weights":
        (folder / "model.safetensors").unlink()
    elif kind == "missing shard":
        index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "model.safetensors").unlink()
    elif kind == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif kind == "damaged config":
        (folder / "config.json").write_text('{"architectures": [')
    return folder


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("no checkpoint", "is not a checkpoint (no config.json)"),
        ("adapter", "is a LoRA adapter; serve it with its base (--model BASE --lora-modules NAME="),
        ("no weights", "has no weights"),
        ("missing shard", "lacks model-00002-of-00002.safetensors"),
        ("no tokenizer", "has no tokenizer.json"),
        ("damaged config", "config.json is damaged"),
    ],
)
def test_launcher_refuses_incomplete_folders(
    run_script: RunScript, tiny_checkpoint: Path, tmp_path: Path, kind: str, expected: str
) -> None:
    folder = broken(kind, tiny_checkpoint, tmp_path / "model")
    error = run_script(LAUNCHER, "--model", folder, status=2).stderr
    assert error.startswith(f"error: {folder}")
    assert expected in error
    assert error.count("\n") == 1


def test_help_is_quick_and_lists_our_options(run_script: RunScript) -> None:
    began = time.monotonic()
    shown = run_script(LAUNCHER, "--help").stdout
    assert "--template_path T" in shown
    assert "--help=all" in shown
    assert time.monotonic() - began < 10


def test_launcher_refuses_missing_folder_or_template(
    run_script: RunScript, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    error = run_script(LAUNCHER, "--model", tmp_path / "none", status=2).stderr
    assert (
        error == f"error: {tmp_path}/none does not exist; --model takes a checkpoint folder or a hub name (org/name)\n"
    )
    error = run_script(LAUNCHER, "--model", tiny_checkpoint, "--template_path", tmp_path / "t.jinja", status=2).stderr
    assert error.startswith(f"error: {tmp_path}/t.jinja does not exist; --template_path takes a Jinja file or ")
    assert error.count("\n") == 1


def test_launcher_without_model_complains_before_it_imports_vllm(run_script: RunScript) -> None:
    began = time.monotonic()
    error = run_script(LAUNCHER, "--port", 8090, status=2).stderr
    assert error == "error: --model is missing; give a checkpoint folder (or a hub name)\n"
    assert time.monotonic() - began < 10


def test_launcher_refuses_a_port_in_use(run_script: RunScript, tiny_checkpoint: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        began = time.monotonic()
        error = run_script(LAUNCHER, "--model", tiny_checkpoint, "--port", port, status=2).stderr
    assert error.startswith(f"error: port {port} on 127.0.0.1 is in use; ")
    assert error.count("\n") == 1
    assert time.monotonic() - began < 20
    with pytest.raises(ValueError, match=r"cannot listen on 192\.0\.2\.1:80"):
        check_port("192.0.2.1", 80)
    with pytest.raises(ValueError, match=r"^port 65536 does not exist; give --port a number up to 65535$"):
        precheck(["--model", "m", "--port", "65536"])


PARSE_EACH = """
import json, sys
from launch_vllm import main
from server_launch.launch_args import parse_server_args
*lines, unservable = json.load(sys.stdin)
try:
    main(unservable)
except ValueError as error:
    print(json.dumps(str(error)))
for line in lines:
    try:
        settings = vars(parse_server_args(line))
        names = "host", "port", "dtype", "chat_template", "max_num_seqs", "max_num_queued_tokens"
        print(json.dumps({name: settings[name] for name in names}))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


@pytest.mark.integration
def test_vllms_options_are_parsed_and_wrong_ones_refused(
    repository: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Several command lines in one process, since importing vLLM takes seconds; none starts an engine."""
    config, template = tmp_path / "serve.yaml", tmp_path / "broken.jinja"
    config.write_text(f"model: {tiny_checkpoint}\nport: {free_port()}\nmax-num-seqs: 3\n")
    template.write_text("{{ raise_exception('no') }}")
    marked = Path(shutil.copytree(tiny_checkpoint, tmp_path / "marked"))
    (marked / "chat_template.jinja").write_text("\ufeff{{ messages[0].content }}", encoding="utf-8")
    (own := tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    options = ["--model", str(tiny_checkpoint), "--port", str(free_port())]
    wrong_numbers = [
        ["--block-size=٣"], ["--max-num-seqs=1_0"], ["--offload-group-size= 1"], ["--mm-processor-cache-gb=-0.5"],
        ["--max-model-len=1_0"], ["--max-cpu-loras=-1"], ["--max-body-mib= 1"],
        [f"--shutdown-timeout={10**30}"], ["--watermark=nan"], ["--max-num-queued-tokens=٣"],
        ["--max-num-queued-tokens=-5"], ["--max-num-batched-tokens=-1"], ["--max-model-len=-2"],
    ]  # fmt: skip
    lines = [
        [*options, "--template_path", str(own), "--max_num_seqs", "5", "--max-logprobs=-1", "--max-cpu-loras=None"],
        [str(tiny_checkpoint), "--host", "0.0.0.0", "--port", str(free_port()), "--dtype", "half"],
        ["--config", str(config)],
        ["--model", str(marked), "--port", str(free_port())],
        [*options, "--max-num-batched", "8000"],
        [*options, "--prot", "8090"],
        [*options, "--port=x"],
        ["--port", str(free_port())],
        [*options, "--tensor-parallel-size", "4096"],
        [*options, "--data-parallel-size", "4096"],
        *([*options, *words] for words in wrong_numbers),
        [*options, "--max-model-len=-1", "--max-num-queued-tokens=4k", "--kv-cache-memory-bytes="],
        [*options, "--template_path", str(template)],
    ]
    done = subprocess.run(
        [sys.executable, "-c", PARSE_EACH], input=json.dumps(lines), capture_output=True, text=True, timeout=580,
        env=os.environ | {"PYTHONPATH": str(repository / "inference")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # A user's error is the only line of the command; vLLM's import would log a line about Triton before it.
    assert all(line.startswith("notice: ") for line in done.stderr.splitlines()), done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines() if line[0] in '{"']
    unrendered, ours, vllms, from_file, without_mark, *errors, readable = printed
    assert (ours["host"], ours["chat_template"], ours["max_num_seqs"]) == ("127.0.0.1", own.read_text(), 5)
    assert (vllms["host"], vllms["dtype"]) == ("0.0.0.0", "half")
    assert from_file["max_num_seqs"] == 3
    assert (vllms["chat_template"], without_mark["chat_template"]) == (None, "{{ messages[0].content }}")
    abbreviated, misspelt, port, model, *parallel = errors[:6]
    numbers = errors[6:]
    assert abbreviated.startswith("unknown option --max-num-batched; did you mean --max-num-batched-tokens?")
    assert misspelt.startswith("unknown option --prot; did you mean --port?")
    assert port == "--port: 'x' is not a whole number of 0 or more; see --help"
    assert numbers[0] == "--block-size: '٣' is not a whole number of 0 or more; see --help"
    assert numbers[4] == "--max-model-len: '1_0' is not a whole number of -1 or more, such as 4096 or 4k; see --help"
    assert [line.split(":")[0] for line in numbers] == [words[0].split("=")[0] for words in wrong_numbers]
    assert readable["max_num_queued_tokens"] == 4000
    assert model.startswith("--model is missing; ")
    assert len(parallel) == 2 and all(line.startswith("4096 processes (data x tensor x pipel") for line in parallel)
    assert unrendered.startswith(f"{template}: the chat template cannot render these messages: ")
    assert unrendered.endswith("correct it, or give another with --template_path")


@pytest.mark.slow
def test_published_command_serves_a_base_model_and_exits_cleanly(start_server: Any, tiny_checkpoint: Path) -> None:
    """Half precision, two processes on two cores, a former option; no process remains after SIGTERM."""
    parallel = min(2, len(os.sched_getaffinity(0)))
    server = start_server(
        tiny_checkpoint, "--use-np-weights", "--max-num-batched-tokens", 8000, "--dtype", "half",
        "--tensor-parallel-size", parallel,
    )  # fmt: skip
    log = server.log.read_text()
    assert log.startswith("notice: --use-np-weights is dropped")
    assert "notice: no GPU: --enforce-eager" in log or "no GPU" not in log
    answer = server.generate("The capital of", temperature=0, max_tokens=8, ignore_eos=True)
    assert answer["num_output_tokens_cf"] == 8
    assert server.generate("The capital of", "Norway", max_tokens=4)["error"] is None
    assert len(server.process_ids()) > 1
    assert server.stop() < 10
    assert server.process.returncode == 0
    for _ in range(20):
        if not server.process_ids():
            break
        time.sleep(0.1)
    assert server.process_ids() == []
