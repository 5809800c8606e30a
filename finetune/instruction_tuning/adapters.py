"""The model that is tuned: loaded whole or quantised, with the adapter that was asked for, and the adapter's files.

LoRA (Hu et al. 2021) with the variants that PEFT has: rank-stabilised (Kalajdzievski 2023), DoRA (Liu et al. 2024),
PiSSA (Meng et al. 2024), LoRA+ (Hayou et al. 2024), and on a quantised base, QLoRA (Dettmers et al. 2023).

finetune.py loads and saves through it.
"""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packed_attention import segment_attention

if TYPE_CHECKING:
    from instruction_tuning.tuning_arguments import TuningArguments

START = "pissa_start.safetensors"  # where a PiSSA adapter began, in the output folder until the run's end
LARGEST_RANK = 512  # of an adapter that vLLM serves (vllm/config/lora.py, 0.32)


def refuse_unservable(args: "TuningArguments") -> None:
    """Raise ValueError on what vLLM 0.32 cannot load as an adapter (vllm/lora/peft_helper.py), with what to do."""
    rank = args.lora_r * (2 if args.lora_init.startswith("pissa") else 1)
    trouble = {
        "--use_dora": args.use_dora,
        f"--lora_bias {args.lora_bias}": args.lora_bias != "none",
        f"--lora_modules_to_save {','.join(args.lora_modules_to_save)}": bool(args.lora_modules_to_save),
        f"a rank of {rank}": rank > LARGEST_RANK,
    }
    for what, wanted in trouble.items():
        if wanted and args.method != "full":
            raise ValueError(
                f"vLLM does not load adapters with {what}; leave it out, or leave --servable out and merge the adapter "
                "afterwards: python tools/weight_diff.py merge"
            )


def load_model(args: "TuningArguments") -> Any:
    """The base in the precision of the run, with a fresh adapter unless all weights are tuned.

    Raises ValueError where the checkpoint lacks weights (transformers would draw them at random) or has ones that the
    architecture does not know, and where --lora_target_modules names none of its modules.
    """
    import torch
    from transformers import AutoModelForCausalLM

    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    dtype = torch.float32 if args.method == "full" else half  # a frozen base needs no master weights
    segment_attention.register()
    loading: Any = AutoModelForCausalLM.from_pretrained(
        args.base_model, dtype=dtype, local_files_only=True, output_loading_info=True,
        attn_implementation=implementation(args), **quantised(args, half),
    )  # fmt: skip
    model, loaded = loading
    wrong = sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"], *loaded["unexpected_keys"]]))
    if wrong:
        raise ValueError(
            f"{args.base_model}: {len(wrong)} weights are missing, unknown or of another shape, {wrong[0]} for one; "
            "get the checkpoint again"
        )
    if args.load_in:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, args.gradient_checkpointing)
        for module in model.modules():  # evaluation would pack 4-bit weights in a form that no gradient passes (CPU)
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    elif args.gradient_checkpointing:
        model.enable_input_require_grads()
    return model if args.method == "full" else add_adapter(model, args)


def implementation(args: "TuningArguments") -> str:
    """The attention to load the model with: what was asked for, else FlashAttention, else sdpa, row by row if packed.

    Raises ValueError where FlashAttention is asked for in float32.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils import is_flash_attn_2_available

    half = args.bf16 or args.fp16
    if args.attn_implementation:
        if "flash" in args.attn_implementation and not half:
            raise ValueError(f"--attn_implementation {args.attn_implementation} needs --bf16 or --fp16")
        return args.attn_implementation
    config = AutoConfig.from_pretrained(args.base_model, local_files_only=True)
    architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if args.packing != "false" and half and is_flash_attn_2_available() and args.device.type == "cuda":
        return "flash_attention_2"
    if not getattr(architecture, "_supports_sdpa", False):
        return "eager"
    return "sdpa" if args.packing == "false" else segment_attention.NAME


def quantised(args: "TuningArguments", compute: Any) -> dict[str, Any]:
    """from_pretrained's arguments for a base in 8 or 4 bits (NF4, its scales quantised, too) on the rank's device."""
    if not args.load_in:
        return {}
    from transformers import BitsAndBytesConfig

    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if args.load_in == "8bit"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    )
    return {"quantization_config": config, "device_map": {"": args.device}}


def add_adapter(model: Any, args: "TuningArguments") -> Any:
    """The model with a LoRA adapter on the wanted layers; all that is trained is float32."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    names = args.lora_target_modules
    modules = [(name.split(".")[-1], module) for name, module in model.named_modules()]
    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    found = {name for name, module in modules if isinstance(module, kinds)}
    for option, wanted in (("target_modules", names), ("modules_to_save", args.lora_modules_to_save)):
        missing = [name for name in wanted if name != "all-linear" and name.split(".")[-1] not in found]
        if missing:
            raise ValueError(
                f"--lora_{option}: the model has no module {missing[0]}; it has {', '.join(sorted(found))}"
            )
    first_value: Any = True if args.lora_init == "default" else args.lora_init
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules="all-linear" if "all-linear" in names else names,
        modules_to_save=args.lora_modules_to_save or None,
        use_rslora=args.use_rslora,
        use_dora=args.use_dora,
        bias=args.lora_bias,
        init_lora_weights=first_value,
        task_type="CAUSAL_LM",
    )
    tuned = get_peft_model(model, config)
    if not args.deepspeed:  # which keeps float32 masters of all that is trained
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    # peft's "auto" would store the whole of an embedding or output matrix whose adapter is trained; no row was added.
    tuned.save_pretrained = partial(tuned.save_pretrained, save_embedding_layers=False)  # type: ignore[method-assign]
    return tuned


def tensor_names(model: Any) -> set[str]:
    """What the file of a model's adapter must hold, --lora_modules_to_save included."""
    from peft import get_peft_model_state_dict

    return set(get_peft_model_state_dict(model, save_embedding_layers=False))


def check_adapter(file: Path, expected: set[str], trained: bool = True) -> None:
    """Raise ValueError unless the file holds exactly these tensors, finite and, once trained, none of them zero."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        found = set(tensors.keys())
        if found != expected:
            raise ValueError(
                f"{file} holds {len(found)} tensors and should hold {len(expected)}; {min(found ^ expected)} is in one "
                "of the two only; it is not this model's adapter"
            )
        for name in sorted(expected):
            weight = tensors.get_tensor(name)
            if not weight.isfinite().all() or (trained and not weight.any()):
                raise ValueError(
                    f"{name} in {file} is {'zero' if weight.isfinite().all() else 'not finite'} after training; "
                    "train for more steps, or at another --learning_rate"
                )


def keep_pissa_start(model: Any, output: Path, resumed: bool) -> None:
    """Note where a PiSSA adapter begins, for `plain_lora`; a resumed run must begin where it did before.

    PiSSA takes the adapter's first value out of the base, so that its files fit no base that others have.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file, save_file

    start = {name: weight.detach().cpu().contiguous() for name, weight in get_peft_model_state_dict(model).items()}
    file = output / START
    if not resumed:
        output.mkdir(parents=True, exist_ok=True)
        save_file(start, file)
    elif not file.is_file() or not all(torch.allclose(was, start[name]) for name, was in load_file(file).items()):
        raise ValueError(f"{file} is missing or from another machine's PiSSA; start again in a new folder")


def plain_lora(folder: Path, start: Path) -> None:
    """Turn a trained PiSSA adapter into a plain one of twice the rank: B A - B0 A0 = [B, B0] [A; -A0].

    The scale alpha / r, or alpha / sqrt(r) when rank-stabilised, stays as it was. Source: Meng et al. 2024, appendix.
    """
    import torch
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    weights, begun = load_file(file), load_file(start)
    for name, weight in weights.items():
        if ".lora_A." in name:
            weights[name] = torch.cat([weight, -begun[name]], 0)
        elif ".lora_B." in name:
            weights[name] = torch.cat([weight, begun[name]], 1)
    save_file(weights, file, metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"init_lora_weights": True, "r": 2 * config["r"]}
    config["lora_alpha"] *= 2**0.5 if config["use_rslora"] else 2
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
