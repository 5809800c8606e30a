"""vllm_hooks.py, cpu_adapters.py: vLLM's private interfaces exist as expected, and vLLM calls the overrides."""

import argparse
import inspect
import re
from functools import partial
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import free_port
from server_launch.launch_args import model_configuration, parse_server_args
from server_launch.launch_checks import option_errors
from vllm_bridge.request_cost import counted_cost, record_sequences, tokens_used
from vllm_bridge.request_errors import STREAMING_HANDLERS
from vllm_bridge.vllm_hooks import PRIVATE_API
from vllm_bridge.vllm_imports import MODULES, from_vllm


@pytest.mark.parametrize("name", MODULES)
def test_imported_names_exist(name: str) -> None:
    assert from_vllm(name) is not None


@pytest.mark.parametrize("place", PRIVATE_API)
def test_private_interfaces_exist_with_the_expected_parameters(place: str) -> None:
    module, name, parameters = re.fullmatch(r"([\w.]+):([\w.]+)(?:\((.*)\))?", place).groups()  # type: ignore[union-attr]
    found = attrgetter(name)(import_module(module))
    if parameters:
        assert set(parameters.split(", ")) <= set(inspect.signature(found).parameters)


def test_vllm_compiles_a_function_for_log_probabilities() -> None:
    """Without this compilation, request_cost.warm_up would not be needed."""
    from vllm.v1.sample.ops.logprobs import batched_count_greater_than

    assert hasattr(batched_count_greater_than, "_torchdynamo_orig_callable")


def test_from_vllm_names_the_missing_name_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, "LoRARequest", "vllm.lora.elsewhere")
    with pytest.raises(ValueError, match=r"vllm\.lora\.elsewhere\.LoRARequest cannot be imported .* tools/setup\.sh "):
        from_vllm("LoRARequest")


@pytest.fixture
def wrapper(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the LoRA wrapper that vLLM creates with a CpuAdapterWorker, for rows of adapter 1, base, adapter 1."""
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper import get_punica_wrapper
    from vllm_bridge import cpu_adapters

    platform = type(from_vllm("current_platform"))
    if not from_vllm("current_platform").is_cpu():
        pytest.skip("there is a GPU; its kernels are vLLM's own")
    monkeypatch.setattr(platform, "get_punica_wrapper", platform.get_punica_wrapper)
    monkeypatch.setattr(from_vllm("CPUWorker"), "__init__", lambda self, **kwargs: None)
    cpu_adapters.CpuAdapterWorker(vllm_config=None)
    made = get_punica_wrapper(8, max_batches=4, device="cpu", lora_config=from_vllm("LoRAConfig")())
    assert type(made) is cpu_adapters.GroupedPunicaWrapper
    made.update_metadata(LoRAMapping(index_mapping=(1, 0, 1), prompt_mapping=(1, 0, 1), is_prefill=True), [1], 1, 16)
    return made


def test_wrapper_groups_the_rows_of_vllms_mapping(wrapper: Any) -> None:
    for groups in (wrapper.token_groups, wrapper.sampler_groups):
        assert [(slot, rows.tolist()) for slot, rows in groups] == [(0, [0, 2])]


def test_wrapper_adds_products_for_rows_of_adapters_only(wrapper: Any) -> None:
    torch.manual_seed(0)
    x, a, b = torch.randn(3, 6), torch.randn(1, 1, 2, 6), torch.randn(1, 1, 4, 2)
    expected = x @ a[0, 0].T @ b[0, 0].T
    expected[1] = 0
    linear, logits = torch.zeros(3, 4), torch.zeros(3, 4)
    wrapper.add_lora_linear(linear, x, (a,), (b,), 1.0, (4,))
    wrapper.add_lora_logits(logits, x, a, b, 1.0)
    embedding = torch.zeros(3, 4)
    wrapper.add_lora_embedding(embedding, x @ a[0, 0].T, b, add_inputs=True)
    for result in (linear, logits, embedding):
        torch.testing.assert_close(result, expected)


def test_vllms_layers_call_every_override() -> None:
    from vllm.lora import layers

    text = "\n".join(source.read_text() for source in Path(layers.__file__).parent.glob("*.py"))
    manager = Path(import_module("vllm.lora.model_manager").__file__ or "").read_text()
    for name in ("add_lora_linear", "add_lora_logits", "add_lora_embedding"):
        assert re.search(rf"\.{name}\(", text), name
    assert "get_punica_wrapper(" in manager
    assert ".update_metadata(" in manager


def test_sequences_of_vllms_output_processor_are_recorded() -> None:
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.output_processor import OutputProcessor

    processor = OutputProcessor(None, log_stats=False)
    record_sequences(SimpleNamespace(output_processor=processor))

    def start(name: str) -> None:
        sampling = SamplingParams(max_tokens=9, detokenize=False, output_kind=RequestOutputKind.DELTA)
        fields: dict[str, Any] = {"request_id": name, "external_req_id": name, "prompt_token_ids": [1, 2, 3]}
        fields |= {"sampling_params": sampling, "arrival_time": 0.0}
        known = inspect.signature(EngineCoreRequest).parameters
        others: dict[str, Any] = {
            key: None for key, value in known.items() if key not in fields and value.default is value.empty
        }
        processor.add_request(EngineCoreRequest(**fields, **others), None)

    start("unrecorded")
    with counted_cost(1) as cost:
        start("first")
        start("second")
    start("later")
    sequences = cost.sequences
    assert [sequence.request_id for sequence in sequences] == ["first", "second"]
    assert tokens_used({}, sequences) == 6
    for sequence in sequences:  # vLLM's detokenizer counts the generated tokens
        sequence.detokenizer.token_ids += [7, 7]
    assert tokens_used({}, sequences) == 10


def test_tokens_used_prefers_the_count_of_the_handler() -> None:
    usage = SimpleNamespace(prompt_tokens=5, completion_tokens=7)
    answered = SimpleNamespace(final_usage_info=usage)
    sequence: Any = SimpleNamespace(prompt_len=3, detokenizer=SimpleNamespace(num_output_tokens=lambda: 4))
    pooled: Any = SimpleNamespace(prompt_len=2, detokenizer=None)
    assert tokens_used({"knowlm_usage": 0, "request_metadata": answered}, [sequence]) == 0
    assert tokens_used({"request_metadata": answered}, [sequence]) == 12
    assert tokens_used({"request_metadata": SimpleNamespace(final_usage_info=None)}, [sequence, pooled]) == 9
    assert tokens_used({}, []) == 0


def test_vllm_sets_the_attributes_that_are_read_from_its_application() -> None:
    """The attributes are args, engine_client, server, openai_serving_models and the handlers of streams."""
    launchers = Path(import_module("vllm.entrypoints.launchers").__file__ or "").parent
    modules = ("vllm.entrypoints.generate.api_router", "vllm.entrypoints.scale_out.factories")
    files = [Path(import_module(module).__file__ or "") for module in modules]
    text = "\n".join(source.read_text() for source in [*launchers.rglob("*.py"), *files])
    for name in ("args", "engine_client", "server", "openai_serving_models", *STREAMING_HANDLERS):
        assert re.search(rf"\bstate\.{name} = ", text), name


@pytest.mark.parametrize("gib", [24, 69, 70, 141, 180])
def test_memory_advice_assumes_vllms_defaults_for_a_card(monkeypatch: pytest.MonkeyPatch, gib: int) -> None:
    from memory_advice.gpu_uses import SERVER_BATCHES
    from memory_estimate.training_memory import GIB, MEMORY_SHARE
    from vllm.engine import arg_utils

    card = SimpleNamespace(
        get_device_total_memory=lambda: gib * GIB, get_device_name=lambda: "card", is_tpu=bool, is_cpu=bool
    )
    monkeypatch.setattr(arg_utils, "current_platform", card)
    tokens, requests = (
        next(number for context, number in defaults.items() if context and context.name == "OPENAI_API_SERVER")
        for defaults in arg_utils.EngineArgs.get_batch_defaults(1)
    )
    assert (tokens, requests) == next(row[1:] for row in SERVER_BATCHES if gib >= row[0])
    assert inspect.signature(arg_utils.EngineArgs).parameters["gpu_memory_utilization"].default == MEMORY_SHARE


def test_errors_of_vllm_about_options_become_value_errors(tiny_checkpoint: Path) -> None:
    """vLLM raises exceptions of several classes, some with unformatted messages; errors of the launcher are kept."""
    engine_options = from_vllm("AsyncEngineArgs")(model=str(tiny_checkpoint), data_parallel_backend="x")
    logging_options = argparse.Namespace(log_config_file="x,y")
    for check, message in (
        (engine_options.create_engine_config, "data_parallel_backend can only be ray or mp, got x"),
        (
            partial(from_vllm("configure_logging_from_args"), logging_options),
            "Could not load logging config. File does not exist: x,y",
        ),
        (
            partial(
                from_vllm("ServeSubcommand")().validate,
                parse_server_args(
                    ["--model", str(tiny_checkpoint), "--port", str(free_port()), "--chat-template", "../missing/x"]
                ),
            ),
            "../missing/x) appears path-like, but doesn't exist!",
        ),
    ):
        with pytest.raises(ValueError) as error, option_errors():
            check()
        assert message in str(error.value)
    with pytest.raises(KeyError), option_errors():
        raise KeyError("an error of the launcher")


def test_config_value_of_a_wrong_type_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": {}}')
    with pytest.raises(ValueError, match=r"config\.json cannot be read \(.*'eos_token_id'.*\); download it again$"):
        model_configuration(tmp_path)
