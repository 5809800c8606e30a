"""The quantisation methods, their requirements, and the calls of the two libraries that implement them.

llmcompressor, which writes the compressed-tensors format, implements GPTQ (https://arxiv.org/abs/2210.17323), AWQ
(https://arxiv.org/abs/2306.00978), SmoothQuant (https://arxiv.org/abs/2211.10438) and rounding to FP8. bitsandbytes
implements LLM.int8() (https://arxiv.org/abs/2208.07339) and NF4 (https://arxiv.org/abs/2305.14314). Embedding, norms
and lm_head are not quantised.
"""

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from exact_tokenizers.special_ids import correct_model_ids, has_old_ids
from exact_tokenizers.tokenizer_folders import exact_tokenizer_folder
from model_folders.attention_backends import attention_backend
from model_folders.own_code import OwnCodeError, from_folder

OUTPUT = "lm_head"
GROUPS = (128, 64, 32)  # group sizes for which vLLM has kernels, best compression first
ENVIRONMENT = (
    "python3.11 -m venv .venv-quantize && .venv-quantize/bin/pip install -r requirements-quantize.txt, "
    "then .venv-quantize/bin/python tools/quantize.py … (without a GPU, first: .venv-quantize/bin/pip install "
    "torch==2.13.0 from PyTorch's CPU builds)"
)


class Method(NamedTuple):
    """A method's description, library, bits per weight, and whether it needs calibration and group sizes."""

    description: str
    package: str
    bits: int
    calibrated: bool = False
    grouped: bool = False


METHODS = {
    "gptq": Method("GPTQ, 4-bit weights, symmetric (W4A16)", "llmcompressor", 4, calibrated=True, grouped=True),
    "awq": Method("AWQ, 4-bit weights with zero points (W4A16)", "llmcompressor", 4, calibrated=True, grouped=True),
    "fp8": Method("FP8 E4M3, a scale per output channel, activations per token (W8A8)", "llmcompressor", 8),
    "int8": Method("SmoothQuant + GPTQ, INT8, activations per token (W8A8)", "llmcompressor", 8, calibrated=True),
    "bnb8": Method("bitsandbytes LLM.int8()", "bitsandbytes", 8),
    "nf4": Method("bitsandbytes NF4, scales quantised too", "bitsandbytes", 4),
}


@contextmanager
def suppress_output() -> Iterator[None]:
    """Hide the libraries' log messages and warnings, and their progress bars if stderr is not a terminal."""
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would log a message for every layer and token
    with warnings.catch_warnings(action="ignore"), ExitStack() as stack:
        if not sys.stderr.isatty():
            stack.enter_context(redirect_stderr(io.StringIO()))
            stack.enter_context(redirect_stdout(io.StringIO()))
        yield


def linear_layers(model: Path, trust_remote_code: bool = False) -> dict[str, tuple[int, int]]:
    """Return {name: (outputs, inputs)} of every linear layer except lm_head, from config.json alone.

    Raises ValueError if there are none, or if transformers cannot make the model of config.json.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = from_folder(AutoConfig, model, trust_remote_code)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except OwnCodeError:
        raise
    except Exception as error:  # transformers raises many types
        raise ValueError(f"{model / 'config.json'}: {' '.join(str(error).split())}; download it again") from error
    modules = [(name, module) for name, module in skeleton.named_modules() if isinstance(module, torch.nn.Linear)]
    layers = {name: (m.out_features, m.in_features) for name, m in modules if name.split(".")[-1] != OUTPUT}
    if not layers:
        raise ValueError(f"{model} has no linear layers ({type(skeleton).__name__}) to quantise; give another model")
    return layers


def choose_group_size(layers: dict[str, tuple[int, int]], wanted: int, model: Path) -> int:
    """Return the group size: `wanted`, or if it is 0, the largest of GROUPS that divides every layer's inputs.

    Raises ValueError if vLLM has no kernel for `wanted`, or if a layer's inputs are not a multiple of the group size.
    """
    fitting = [size for size in GROUPS if all(inputs % size == 0 for _, inputs in layers.values())]
    if wanted and wanted not in GROUPS:
        raise ValueError(f"--group_size {wanted} has no kernel in vLLM; use one of {', '.join(map(str, GROUPS))}")
    if wanted in fitting or (fitting and not wanted):
        return wanted or fitting[0]
    size = wanted or GROUPS[-1]
    name, inputs = next((name, inputs) for name, (_, inputs) in layers.items() if inputs % size)
    remedy = f"use --group_size {fitting[0]}" if fitting else "use --method fp8, int8, bnb8 or nf4"
    raise ValueError(f"{model}: {name} has {inputs} inputs, not a multiple of the group size {size}; {remedy}")


def load_model(
    folder: Path, dtype: str = "auto", trust_remote_code: bool = False, on_cpu: bool = False, **arguments: Any
) -> Any:
    """Load a causal language model for inference on the first GPU, or on the CPU.

    arguments: further arguments of from_pretrained. Raises ValueError if weights are missing or have other shapes;
    transformers would initialise them at random.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    device = 0 if torch.cuda.is_available() and not on_cpu else "cpu"
    loading: Any = from_folder(
        AutoModelForCausalLM, folder, trust_remote_code, dtype=dtype, device_map={"": device}, output_loading_info=True,
        attn_implementation=attention_backend(from_folder(AutoConfig, folder, trust_remote_code)), **arguments,
    )  # fmt: skip
    model, loaded = loading
    wrong = sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]]))
    if wrong:
        raise ValueError(f"{folder}: weights are missing or have another shape, such as {wrong[0]}; download it again")
    if unknown := sorted(loaded["unexpected_keys"]):
        line = f"{len(unknown)} tensors of {folder} are not part of the model, such as {unknown[0]}"
        print(f"notice: {line}; they are ignored", file=sys.stderr)
    if has_old_ids(model.config.to_dict()):
        exact = exact_tokenizer_folder(folder, trust_remote_code)
        correct_model_ids(model, from_folder(AutoTokenizer, exact, trust_remote_code), folder)
    return model.eval()


def quantise(
    folder: Path, target: Path, method: str, group: int, samples: Sequence[list[int]], shard_limit: int, **loading: Any
) -> None:
    """Quantise the model of `folder` in memory; write its weights and config.json to the folder `target`.

    samples: token ids for calibration. shard_limit: bytes of the largest shard. loading: dtype and trust_remote_code of
    load_model. Raises ValueError with the library's message if the library fails.
    """
    library = METHODS[method].package
    try:
        if library == "llmcompressor":
            quantise_with_llmcompressor(folder, target, recipe(method, group), samples, shard_limit, **loading)
        else:
            quantise_with_bitsandbytes(folder, target, method, shard_limit, **loading)
    except (RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{library} could not quantise {folder}: {str(error)[:300] or repr(error)}") from error
    for file in target.iterdir():  # safetensors creates files that only the owner can read
        file.chmod((target / "config.json").stat().st_mode)


def quantise_with_llmcompressor(
    folder: Path, target: Path, modifiers: list[Any], samples: Sequence[list[int]], shard_limit: int, **loading: Any
) -> None:
    """Quantise with llmcompressor, layer by layer, on the GPU if there is one."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():  # AWQ pins memory even without a GPU (llmcompressor 0.14.0.1)
        IntermediatesCache.pin_memory = lambda *_, **__: None
    rows: Any = [{"input_ids": torch.tensor([i]), "attention_mask": torch.ones(1, len(i)).long()} for i in samples]
    model = load_model(folder, on_cpu=True, **loading)
    oneshot(
        model=model,
        recipe=modifiers,
        dataset=torch.utils.data.DataLoader(rows, batch_size=None) if rows else None,
        num_calibration_samples=len(rows),
    )
    model.save_pretrained(target, max_shard_size=shard_limit)
    # recipe.yaml names Python classes to instantiate; run.json records the same settings.
    (target / "recipe.yaml").unlink(missing_ok=True)
    for module in model.modules():  # frees the memory, although the library keeps a reference to the model
        for name, _ in list(module.named_parameters(recurse=False)):
            delattr(module, name)


def recipe(method: str, group: int) -> list[Any]:
    """Return llmcompressor's modifiers for a method: its preset scheme with this group size."""
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform import AWQModifier, SmoothQuantModifier

    presets = {"gptq": "W4A16", "awq": "W4A16_ASYM", "fp8": "FP8_DYNAMIC", "int8": "W8A8"}
    scheme = preset_name_to_scheme(presets[method], ["Linear"])
    if METHODS[method].grouped:
        scheme.weights.group_size = group
    given: Any = {"config_groups": {"group_0": scheme}, "ignore": [OUTPUT]}
    if method == "gptq":
        return [GPTQModifier(**given)]
    if method == "int8":  # published W8A8 models use a strength of 0.8
        return [SmoothQuantModifier(smoothing_strength=0.8), GPTQModifier(**given)]
    return [*([AWQModifier()] if method == "awq" else []), QuantizationModifier(**given)]


def quantise_with_bitsandbytes(
    folder: Path, target: Path, method: str, shard_limit: int, dtype: str = "auto", trust_remote_code: bool = False
) -> None:
    """Quantise with bitsandbytes, which quantises each weight while loading it."""
    import torch
    from transformers import AutoConfig, BitsAndBytesConfig

    own = from_folder(AutoConfig, folder, trust_remote_code).dtype or torch.float32
    settings: dict[str, Any] = {"load_in_8bit": True}
    if method == "nf4":
        compute = own if dtype == "auto" else getattr(torch, dtype)
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        settings |= {"bnb_4bit_compute_dtype": compute}
    config = BitsAndBytesConfig(llm_int8_skip_modules=[OUTPUT], **settings)
    model = load_model(folder, dtype, trust_remote_code, quantization_config=config)
    model.save_pretrained(target, max_shard_size=shard_limit)
