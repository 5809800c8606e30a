"""Demos, ie_run.py and merging give equal logits for an adapter made by PEFT, or all refuse it with the same line."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ie_run
import pytest
import torch
from adapter_checks.adapter_config import check_settings
from adapter_checks.adapter_folder import ModulePatterns
from adapter_checks.base_fit import read_adapter_for_base
from adapter_loading.checkpoint_loading import load_checkpoint
from demo_pages import model_loading
from in_process import run_in_process
from lora_adapters import NARROW, logits_of, make_adapter, other_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from server_launch.launch_adapters import check_adapters
from transformers import AutoModelForCausalLM, AutoTokenizer

QUICK_START = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "quick start": {"target_modules": QUICK_START, "r": 4},
    "embedding": {"target_modules": ["embed_tokens"]},
    "embedding and output": {"target_modules": ["embed_tokens", "lm_head"]},
    "modules to save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "regular expression": {"target_modules": r".*layers\.1\..*(q|v)_proj"},
    "all linear": {"target_modules": "all-linear"},
    "one layer": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "excluded": {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*layers\.0\..*"},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"layers.1.*q_proj": 9}, "alpha_pattern": {"v_proj": 5},
    },
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def tied_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return other_model(tiny_checkpoint, tmp_path_factory.mktemp("tied") / "base", tie_word_embeddings=True)


def logits_by_peft(base: Path, adapter: Path) -> torch.Tensor:
    from peft import PeftModel

    return logits_of(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval())


def check_same_logits(base: Path, adapter: Path) -> None:
    """Assert that demo and ie_run.py agree with PEFT, and that the adapter changes the logits."""
    expected = logits_by_peft(base, adapter)
    torch.testing.assert_close(logits_of(model_loading.load(str(base), str(adapter)).model), expected)
    torch.testing.assert_close(
        logits_of(ie_run.load_merged(str(base), str(adapter), "float32")[0].cpu()), expected, rtol=1e-4, atol=1e-5
    )
    assert (logits_of(AutoModelForCausalLM.from_pretrained(base)) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_loads_with_equal_logits_everywhere(tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter", **ADAPTERS[name])
    check_same_logits(tiny_checkpoint, adapter)
    paths = ("--path_zhixi", tiny_checkpoint, "--path_lora", adapter, "--path_sfted", tmp_path / "merged")
    run_in_process("tools/weight_diff.py", "merge", *paths)
    merged = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(merged, logits_by_peft(tiny_checkpoint, adapter), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_adapter_on_tied_matrix_changes_only_one_use_of_the_matrix(
    tied_checkpoint: Path, tmp_path: Path, target: str
) -> None:
    """Adding the delta to the tied matrix would also change the other use, so ie_run.py and merging do not do it."""
    adapter = make_adapter(tied_checkpoint, tmp_path / "adapter", target_modules=["q_proj", target])
    check_same_logits(tied_checkpoint, adapter)
    paths = ("--path_zhixi", tied_checkpoint, "--path_lora", adapter, "--path_sfted", tmp_path / "merged")
    output = run_in_process("tools/weight_diff.py", "merge", *paths).stdout
    assert "embedding and output matrix are no longer tied" in output


def test_adapter_saved_with_copies_of_base_matrices_loads(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """PEFT's save_pretrained without options stores the base's embedding and output beside their adapters."""
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter", target_modules=["embed_tokens", "lm_head"])
    state, base = load_file(adapter / "adapter_model.safetensors"), load_file(tiny_checkpoint / "model.safetensors")
    for module in ("model.embed_tokens", "lm_head"):
        state[f"base_model.model.{module}.base_layer.weight"] = base[f"{module}.weight"]
    save_file(state, adapter / "adapter_model.safetensors", {"format": "pt"})
    check_same_logits(tiny_checkpoint, adapter)


def test_adapter_that_adds_a_token_to_its_base_loads(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter", **ADAPTERS["modules to save"])
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(adapter)
    state = load_file(adapter / "adapter_model.safetensors")
    grown = {name: torch.cat([t, t[:1] + 1]) if t.shape[0] == 800 else t for name, t in state.items()}
    save_file(grown, adapter / "adapter_model.safetensors", {"format": "pt"})
    read_adapter_for_base(adapter, tiny_checkpoint)
    model, tokenizer = load_checkpoint(str(tiny_checkpoint), str(adapter))
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == 801
    paths = ("--path_zhixi", tiny_checkpoint, "--path_lora", adapter, "--path_sfted", tmp_path / "merged")
    run_in_process("tools/weight_diff.py", "merge", *paths)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(model), logits_of(merged), rtol=1e-4, atol=1e-5)


def test_adapter_with_trainable_tokens_loads(tiny_checkpoint: Path, tmp_path: Path) -> None:

    config = LoraConfig(target_modules=["q_proj"], trainable_token_indices=[12, 15], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "trainable_tokens_delta" in name:
                weight.add_(0.1)
    model.save_pretrained(str(tmp_path / "adapter"))
    check_same_logits(tiny_checkpoint, tmp_path / "adapter")


def test_adapter_of_first_peft_versions_loads(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The configuration of PEFT 0.3, which has no later keys, and weights in adapter_model.bin."""
    new = make_adapter(tiny_checkpoint, tmp_path / "new", **ADAPTERS["quick start"])
    old = shutil.copytree(new, tmp_path / "old")
    torch.save(load_file(old / "adapter_model.safetensors"), old / "adapter_model.bin")
    (old / "adapter_model.safetensors").unlink()
    config = {
        "base_model_name_or_path": "base", "bias": "none", "enable_lora": None, "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": True, "lora_alpha": 8, "lora_dropout": 0.05,
        "merge_weights": False, "modules_to_save": None, "peft_type": "LORA", "r": 4, "target_modules": QUICK_START,
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (old / "adapter_config.json").write_text(json.dumps(config))
    check_same_logits(tiny_checkpoint, old)
    assert torch.equal(logits_by_peft(tiny_checkpoint, old), logits_by_peft(tiny_checkpoint, new))


def test_adapter_saved_as_plain_state_dict_loads_but_vllm_refuses_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """torch.save of PEFT's state dict: names such as lora_A.default.weight and modules_to_save.default.weight."""
    saved = make_adapter(tiny_checkpoint, tmp_path / "saved", **ADAPTERS["modules to save"])
    dump = shutil.copytree(saved, tmp_path / "dump")
    (dump / "adapter_model.safetensors").unlink()
    state = {}
    for name, value in load_file(saved / "adapter_model.safetensors").items():
        part = "" if ".lora_" in name else ".modules_to_save"
        state[f"{name.removesuffix('.weight')}{part}.default.weight"] = value
    torch.save(state, dump / "adapter_model.bin")
    expected = logits_by_peft(tiny_checkpoint, saved)
    torch.testing.assert_close(logits_of(model_loading.load(str(tiny_checkpoint), str(dump)).model), expected)
    merged = {}
    for adapter in (saved, dump):
        paths = (
            "--path_zhixi",
            tiny_checkpoint,
            "--path_lora",
            adapter,
            "--path_sfted",
            tmp_path / f"{adapter.name}2",
        )
        run_in_process("tools/weight_diff.py", "merge", *paths)
        merged[adapter.name] = (tmp_path / f"{adapter.name}2/model.safetensors").read_bytes()
    assert merged["saved"] == merged["dump"]
    with pytest.raises(ValueError, match=r"named lora_A\.default\.weight, which vLLM does not load; merge"):
        check_adapters([("ie", str(dump))], str(tiny_checkpoint))


Tensors = dict[str, torch.Tensor]
Q_A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


def without(*words: str) -> Callable[[Tensors], Tensors]:
    return lambda state: {name: t for name, t in state.items() if not all(word in name for word in words)}


def with_extra_layer(state: Tensors) -> Tensors:
    return state | {name.replace("layers.1.", "layers.7."): t.clone() for name, t in state.items()}


FAULTS: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, Any], str]] = {
    "missing layer": (without("layers.1."), {}, "has no tensors for model.layers.1.mlp.down_proj of BASE"),
    "missing matrix": (without("layers.1.", "q_proj", "lora_A"), {}, "only one of lora_A and lora_B for model"),
    "extra layer": (with_extra_layer, {}, "changes model.layers.7.mlp.down_proj, which BASE does not have"),
    "wrong shape": (
        lambda state: state | {Q_A: torch.ones(4, 63)}, {}, "q_proj, but BASE has 64 by 64"
    ),
    "wrong rank": (lambda state: state, {"r": 5}, "its adapter_config.json says 5"),
    "no magnitudes": (lambda state: state, {"use_dora": True}, "has no lora_magnitude_vector for "),
    "no saved module": (lambda state: state, {"modules_to_save": ["embed_tokens"]}, "no tensors for model.embed"),
    "unknown tensor": (lambda state: state | {Q_A.replace("_A", "_C"): torch.ones(2, 2)}, {}, "not a tensor of a LoRA"),
    "no tensors": (lambda state: {}, {}, "contains no tensors"),
    "no rank": (lambda state: state, {"r": None}, "adapter_config.json has no r, but needs a positive integer"),
    "another method": (lambda state: state, {"peft_type": "LOHA"}, "is an adapter of type LOHA"),
}  # fmt: skip


@pytest.mark.parametrize(
    "patterns",
    [
        [],
        ["q_proj", "layers.1.self_attn.q_proj"],
        ["layers.1.self_attn.q_proj", "q_proj"],
        [r"layers\.\d+\.mlp.*", "up_proj", "proj"],
        ["up_proj", r".*up_proj", "model.layers.1.mlp.up_proj"],
        [r"layers.[01].*q_proj", "model.layers.0.self_attn.q_proj", "v_proj"],
    ],
)
def test_rank_pattern_entry_of_a_module_is_the_one_that_peft_finds(patterns: list[str]) -> None:
    from peft.utils.other import get_pattern_key

    table = {pattern: position for position, pattern in enumerate(patterns)}
    for layer in (0, 1, 11):
        for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"):
            module = f"model.layers.{layer}.{part}"
            assert ModulePatterns(table).value(module, -1) == table.get(get_pattern_key(patterns, module), -1)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"r": "8"}, "r='8', but needs a positive integer"),
        ({"r": True}, "r=True, but needs a positive integer"),
        ({"r": 0}, "r=0, but needs a positive integer"),
        ({"r": 8.0}, "r=8.0, but needs a positive integer"),
        ({"lora_alpha": None}, "no lora_alpha, but needs a number"),
        ({"lora_alpha": [16]}, "lora_alpha=[16], but needs a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan, but needs a number"),
        ({"target_modules": 7}, "target_modules=7, but needs a list of names or a regular expression"),
        ({"target_modules": ["q_proj", 7]}, "target_modules=['q_proj', 7], but needs a list of names"),
        ({"target_modules": "q_proj("}, "target_modules='q_proj(', but needs a list of names"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern=['q_proj'], but needs an object of positive integers with names"),
        ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern={'q_proj': '4'}, but needs an object of positive integers"),
        ({"alpha_pattern": {"(": 4}}, "alpha_pattern={'(': 4}, but needs an object of numbers with names or regular"),
        ({"modules_to_save": "lm_head"}, "modules_to_save='lm_head', but needs a list of names"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform=['1'], but needs a layer number or a list"),
        ({"use_dora": "no"}, "use_dora='no', but needs true or false"),
    ],
)
def test_setting_of_a_wrong_type_is_refused_in_one_line(setting: dict[str, Any], reason: str) -> None:
    config = {"r": 8, "lora_alpha": 16.0, "target_modules": "all-linear", "layers_to_transform": 1, "rank_pattern": {}}
    check_settings(config, Path("adapter_config.json"))
    with pytest.raises(ValueError) as refused:
        check_settings(config | setting, Path("adapter_config.json"))
    assert str(refused.value).startswith(f"adapter_config.json has {reason}")
    assert str(refused.value).endswith("; copy the adapter again")


def test_activated_lora_is_refused_with_the_advice_to_use_another_adapter() -> None:
    config = {"r": 8, "lora_alpha": 16, "alora_invocation_tokens": [1]}
    with pytest.raises(ValueError, match=r"activated LoRA is not supported; use a LoRA adapter$"):
        check_settings(config, Path("adapter_config.json"))


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick start's adapter; tests must not write into it."""
    return make_adapter(tiny_checkpoint, tmp_path_factory.mktemp("adapters") / "one", r=4, target_modules=QUICK_START)


def refusals(base: Path, adapter: Path, tmp_path: Path) -> list[str]:
    """Return the error lines of demo, ie_run.py, merging and the server's launcher; assert exit status 2."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "x", "output": "y"}\n')
    files, model = ("--data_path", rows, "--output", tmp_path / "answers.jsonl"), ("--base_model", base)
    done = [
        run_in_process("examples/generate_lora.py", *model, "--lora_weights", adapter, "--run_ie_cases", status=2),
        run_in_process("finetune/ie_run.py", *model, "--lora_weights", adapter, *files, status=2),
        run_in_process(
            "tools/weight_diff.py", "merge", "--path_zhixi", base, "--path_lora", adapter, "--path_sfted",
            tmp_path / "merged", status=2,
        ),
    ]  # fmt: skip
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        check_adapters([("ie", str(adapter))], str(base))
    assert not (tmp_path / "answers.jsonl").exists()
    assert not (tmp_path / "merged").exists()
    return [*(command.stderr for command in done), f"error: {refused.value}\n".replace("adapter ie: ", "")]


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_adapter_is_refused_everywhere_with_one_line(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path, fault: str
) -> None:
    change, settings, message = FAULTS[fault]
    spoilt = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((spoilt / "adapter_config.json").read_text())
    (spoilt / "adapter_config.json").write_text(json.dumps(config | settings))
    save_file(change(load_file(spoilt / "adapter_model.safetensors")), spoilt / "adapter_model.safetensors")
    lines = refusals(tiny_checkpoint, spoilt, tmp_path)
    assert len(set(lines)) == 1, lines
    assert lines[0].startswith("error: ")
    assert lines[0].count("\n") == 1
    assert message.replace("BASE", str(tiny_checkpoint)) in lines[0]


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"num_hidden_layers": 3}, {"target_modules": QUICK_START}, "has no tensors for model.layers.2."),
        ({"num_hidden_layers": 1}, {"target_modules": "all-linear"}, "layers.1."),
        (
            {"vocab_size": 900},
            {"target_modules": ["lm_head"]},
            "has the shape 800 by 64 for lm_head, but BASE has 900 by 64",
        ),
        (
            {"vocab_size": 900},
            {"target_modules": ["embed_tokens"]},
            "has the shape 800 by 64 for model.embed_tokens, but BASE has 900",
        ),
        (NARROW, {"target_modules": ["q_proj"]}, "self_attn.q_proj, but BASE has 32 by 32"),
    ],
    ids=["more layers", "fewer layers", "output", "embedding", "narrower"],
)
def test_adapter_on_another_base_is_refused_everywhere_with_one_line(
    tiny_checkpoint: Path, tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter", **settings)
    other = other_model(tiny_checkpoint, tmp_path / "other", **changes)
    lines = refusals(other, adapter, tmp_path)
    assert len(set(lines)) == 1, lines
    assert message.replace("BASE", str(other)) in lines[0]
    assert lines[0].endswith("give the base that the adapter was trained on\n")


def test_adapter_of_another_vocabulary_of_the_same_size_is_refused_everywhere(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    """Two pieces of the tokenizer are swapped; the tensor shapes fit."""
    other = shutil.copytree(adapter, tmp_path / "adapter")
    content = json.loads((other / "tokenizer.json").read_text())
    table = content["model"]["vocab"]
    one, two = [piece for piece, number in table.items() if number in (500, 600)]
    table[one], table[two] = table[two], table[one]
    (other / "tokenizer.json").write_text(json.dumps(content))
    lines = refusals(tiny_checkpoint, other, tmp_path)
    assert len(set(lines)) == 1, lines
    assert re.search(
        r"has another tokenizer than .*: 2 pieces differ, '.+' has id 600 in the adapter and 500 in the base", lines[0]
    )


def test_bin_weights_that_contain_code_are_refused_without_running_it(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    """A pickle that would create a file is an error, and the file is not created."""

    class Creates:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "created",))

    spoilt = shutil.copytree(adapter, tmp_path / "adapter")
    (spoilt / "adapter_model.safetensors").unlink()
    torch.save({Q_A: Creates()}, spoilt / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model\.bin is damaged"):
        read_adapter_for_base(spoilt, tiny_checkpoint)
    assert not (tmp_path / "created").exists()


def test_setting_that_peft_cannot_use_is_refused_in_one_line(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    """PEFT raises AttributeError for this value of monteclora_config."""
    spoilt = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((spoilt / "adapter_config.json").read_text())
    (spoilt / "adapter_config.json").write_text(json.dumps(config | {"monteclora_config": 7}))
    done = run_in_process(
        "examples/generate_lora.py", "--base_model", tiny_checkpoint, "--lora_weights", spoilt, "--run_ie_cases",
        status=2,
    )  # fmt: skip
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
