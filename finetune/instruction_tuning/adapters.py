"""Load the base, optionally quantised, with a new LoRA adapter; check and convert the adapter after training.

Methods: LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) and PEFT's variants of it: rank-stabilised scaling
(Kalajdzievski 2023, https://arxiv.org/abs/2312.03732), DoRA (Liu et al. 2024, https://arxiv.org/abs/2402.09353), PiSSA
(Meng et al. 2024, https://arxiv.org/abs/2404.02948), LoRA+ (Hayou et al. 2024, https://arxiv.org/abs/2402.12354; in the
trainer), and QLoRA on a quantised base (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314).

Besides documented options, three attributes are changed (tests/finetune/test_adapters.py checks them):

| attribute | function | reason |
| --- | --- | --- |
| `PeftModel.save_pretrained` | save_adapter_only | Trainer calls it without save_embedding_layers; by default it then |
| | | also stores the base's embedding or output matrix if the adapter targets it |
| `BaseTunerLayer.cast_input_dtype_enabled` | add_adapter | under autocast, PEFT would convert the input of each |
| | | adapter to float32, and autocast back to half precision |
| `Linear4bit.support_avx512bf16_for_cpu` | keep_training_layout | in evaluation mode on a CPU, bitsandbytes packs |
| | | 4-bit weights into a layout without a backward pass |
"""

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from adapter_loading.checkpoint_loading import load_base
from model_folders.own_code import from_folder
from packed_attention import segment_attention
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, prepare_model_for_kbit_training
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from training_loop.run_folders import tying_options
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.utils import is_flash_attn_2_available

from instruction_tuning.tuning_arguments import TuningArguments

CAST_INPUT = "cast_input_dtype_enabled"  # PEFT reads it with getattr and declares it nowhere
PISSA_START = "pissa_start.safetensors"  # initial tensors of a PiSSA adapter, in the output folder until the run ends


def load_model_to_tune(args: TuningArguments) -> Any:
    """Return the base, with a new adapter unless all weights are tuned.

    A frozen base needs no float32 master weights, so it is loaded in the half precision of the run, if any; with
    --method full, the weights are float32. Raises ValueError if tensors of the checkpoint are missing or unknown.
    """
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    dtype = torch.float32 if args.method == "full" else half
    segment_attention.register()
    attention = requested_attention(args)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention} | tying_options(Path(args.base_model))
    if args.load_in:
        config = BitsAndBytesConfig(
            load_in_8bit=args.load_in == "8bit", load_in_4bit=args.load_in == "4bit", bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=half,
        )  # fmt: skip
        options |= {"quantization_config": config, "device_map": {"": args.device}}
    model = load_base(AutoModelForCausalLM, args.base_model, args.trust_remote_code, **options)
    if not attention and segment_attention.attention_of(model) == segment_attention.padded_attention(model):
        model.set_attn_implementation(segment_attention.NAME)
    if args.load_in:
        model = prepare_model_for_kbit_training(model, args.gradient_checkpointing)
        keep_training_layout(model)
    return model if args.method == "full" else add_adapter(model, args)


def check_module_names(args: TuningArguments) -> None:
    """Raise ValueError if --lora_target_modules or --lora_modules_to_save has a name that the base lacks.

    The base is built from config.json on the meta device, without weights. A name is the full name of a module
    or its last parts, such as `q_proj` or `mlp.up_proj`.
    """
    targets = [name for name in args.lora_target_modules if name != "all-linear"]
    options = {"target_modules": targets, "modules_to_save": args.lora_modules_to_save}
    if args.method == "full" or not any(options.values()):
        return
    config = from_folder(AutoConfig, args.base_model, args.trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=args.trust_remote_code)
    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    modules = [f".{name}" for name, module in model.named_modules() if isinstance(module, kinds)]
    for option, names in options.items():
        for name in names:
            if not any(module.endswith(f".{name}") for module in modules):
                found = ", ".join(sorted({module.rpartition(".")[2] for module in modules}))
                raise ValueError(f"--lora_{option}: the model has no module {name}; it has {found}")


def requested_attention(args: TuningArguments) -> str | None:
    """Return --attn_implementation, or FlashAttention 2 on a GPU in half precision if it is installed; else None.

    Raises ValueError if FlashAttention is given without half precision.
    """
    half = args.bf16 or args.fp16
    if "flash" in args.attn_implementation and not half:
        raise ValueError(f"--attn_implementation {args.attn_implementation} needs --bf16 or --fp16")
    flash = half and args.device.type == "cuda" and is_flash_attn_2_available()
    return args.attn_implementation or ("flash_attention_2" if flash else None)


def add_adapter(model: Any, args: TuningArguments) -> Any:
    """Return the model with a new LoRA adapter whose weights are float32, except under DeepSpeed."""
    names = args.lora_target_modules
    init_lora_weights: Any = True if args.lora_init == "default" else args.lora_init
    config = LoraConfig(
        r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, bias=args.lora_bias,
        target_modules="all-linear" if "all-linear" in names else names, use_rslora=args.use_rslora,
        modules_to_save=args.lora_modules_to_save or None, use_dora=args.use_dora,
        init_lora_weights=init_lora_weights, task_type="CAUSAL_LM",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings")  # finetune.py prints a notice
        tuned = get_peft_model(model, config)
    if not args.deepspeed:  # DeepSpeed keeps float32 master weights itself
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
        for module in tuned.modules():
            if isinstance(module, BaseTunerLayer) and (args.bf16 or args.fp16):
                setattr(module, CAST_INPUT, False)
    save_adapter_only(tuned)
    return tuned


def save_adapter_only(model: Any) -> None:
    """Make a PeftModel's save_pretrained omit the base's embedding and output matrices."""
    model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)


def keep_training_layout(model: Any) -> None:
    """Make bitsandbytes keep 4-bit weights on a CPU in the layout that training needs."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_adapter_file(file: Path) -> None:
    """Raise ValueError if a trained tensor has a non-finite value, or only zeros (the initial value of lora_B)."""
    for name, weight in sorted(load_file(file).items()):
        state = "not finite" if not weight.isfinite().all() else "" if weight.any() else "zero"
        if state:
            raise ValueError(
                f"{name} in {file} is {state} after training; train for more steps, or change --learning_rate"
            )


def save_pissa_start(model: Any, output: Path, resumed: bool) -> None:
    """Save the initial tensors of a PiSSA adapter, which `convert_pissa_to_lora` needs at the end of the run.

    PiSSA subtracts the initial adapter from the base, so the trained tensors alone do not fit the published base.
    resumed: write nothing; raise ValueError unless the tensors equal the saved tensors within rounding.
    """
    start = {name: weight.detach().cpu().contiguous() for name, weight in get_peft_model_state_dict(model).items()}
    file = output / PISSA_START
    if not resumed:
        output.mkdir(parents=True, exist_ok=True)
        save_file(start, file)
    elif not file.is_file() or not all(torch.allclose(saved, start[name]) for name, saved in load_file(file).items()):
        raise ValueError(f"{file} is missing or has other tensors than this machine computes; start in a new folder")


def convert_pissa_to_lora(folder: Path, start: Path) -> None:
    """Rewrite a trained PiSSA adapter as plain LoRA of twice the rank: B A - B0 A0 = [B, B0] [A; -A0].

    It then fits the original base. alpha is changed with the rank, so that the scaling stays the same.
    start: the file of save_pissa_start. Source: Meng et al. 2024, appendix C.
    """
    file = folder / "adapter_model.safetensors"
    weights, initial = load_file(file), load_file(start)
    for name, weight in weights.items():
        if ".lora_A." in name:
            weights[name] = torch.cat([weight, -initial[name]], 0)
        elif ".lora_B." in name:
            weights[name] = torch.cat([weight, initial[name]], 1)
    save_file(weights, file, metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"init_lora_weights": True, "r": 2 * config["r"]}
    config["lora_alpha"] *= 2**0.5 if config["use_rslora"] else 2
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
