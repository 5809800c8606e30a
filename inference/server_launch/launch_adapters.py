"""Adapters that are served beside their base (--lora-modules NAME=FOLDER …): checks, and vLLM's options for them."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from adapter_checks.adapter_folder import read_adapter_folder
from vllm_bridge.vllm_imports import from_vllm

from server_launch.adapter_folders import check_adapter, module_ranks
from server_launch.adapter_prompts import adapter_prompt_encoder
from server_launch.launch_checks import merge, read_json

MAX_BATCH_ADAPTERS = 8  # default of --max-loras; each adapter reserves memory for the largest rank in every layer

Named = list[tuple[str, str]]  # (name, folder) of each adapter


def named_adapters(given: Sequence[Sequence[str]]) -> Named:
    """Return (name, folder) of the adapters of --lora-modules, without words that vLLM's parser will refuse.

    given: the words of each occurrence of the option. Raises ValueError if the option is given twice, because vLLM
    would use only the last occurrence.
    """
    if len(given) > 1:
        raise ValueError("--lora-modules is given twice; give it once with all adapters: a=FOLDER b=FOLDER")
    named = []
    for word in given[0]:
        name, equals, folder = word.partition("=")
        if not equals or "," in word:
            try:
                entry = json.loads(word)
                name, folder = entry["name"], entry["path"]
            except (ValueError, TypeError, LookupError):
                continue  # vLLM's parser reports it
        named.append((name, folder))
    return named


def check_adapters(named: Named, model: str, served: Sequence[str] = ()) -> None:
    """Check the names and folders of adapters; raises ValueError or FileNotFoundError.

    model: the base's folder; served: the base's names (--served-model-name), if they are not the folder.
    """
    taken = set(served or [model])
    for name, folder in named:
        if not (isinstance(name, str) and name and isinstance(folder, str) and folder):
            raise ValueError("--lora-modules takes NAME=FOLDER; neither may be empty")
        if name in taken:
            remedy = "choose another" if name in (served or [model]) else "give each adapter its own"
            raise ValueError(f"--lora-modules: the name {name} is already used; {remedy}")
        taken.add(name)
        check_adapter(name, folder, model)


def preset_adapters(args: argparse.Namespace) -> list[str]:
    """Set vLLM's LoRA options that the user did not give (None) for the adapters of --lora-modules.

    Returns notes to print. Raises ValueError or FileNotFoundError for an adapter that vLLM does not load, or that the
    user's options exclude.
    """
    named: Named = [(module.name, module.path) for module in args.lora_modules or ()]
    if not named:
        return []
    if args.enable_lora is False:
        raise ValueError("--no-enable-lora and --lora-modules contradict; remove one of them")
    check_adapters(named, args.model, args.served_model_name or ())
    largest = {name: largest_rank(name, folder) for name, folder in named}
    name, rank = max(largest.items(), key=lambda entry: entry[1])
    if args.max_lora_rank is not None and args.max_lora_rank < rank:
        raise ValueError(f"--max-lora-rank {args.max_lora_rank} is less than the rank {rank} of {name}; remove it")
    wanted = {
        "enable_lora": True,
        "max_lora_rank": next(allowed for allowed in sorted(get_args(from_vllm("MaxLoRARanks"))) if allowed >= rank),
        "max_loras": min(len(named), MAX_BATCH_ADAPTERS),
    }
    if len(named) > (args.max_loras or MAX_BATCH_ADAPTERS):
        wanted["max_cpu_loras"] = len(named)  # keeps all adapters in memory; vLLM would reread inactive ones from disk
    left_open = {option: value for option, value in wanted.items() if getattr(args, option) is None}
    vars(args).update(left_open)
    options = [
        "--" + option.replace("_", "-") + ("" if value is True else f" {value}") for option, value in left_open.items()
    ]
    notes = [f"{', '.join(largest)} beside the base: {' '.join(options)}"] if options else []
    return notes + [line for name, folder in named for line in other_base(name, folder, args.model)]


def check_adapter_prompts(args: argparse.Namespace) -> list[str]:
    """Render a prompt with each adapter of --lora-modules; return a note for each that ignores --template_path.

    Raises ValueError if an adapter's tokenizer has other ids than the base's, or its template cannot be rendered.
    """
    if not args.lora_modules:
        return []
    from chat_prompts.prompt_encoding import PromptEncoder, one_turn
    from extraction.extraction_form import read_extraction
    from transformers import AutoTokenizer

    template = from_vllm("load_chat_template")(args.chat_template)
    base = PromptEncoder(AutoTokenizer.from_pretrained(args.tokenizer or args.model), template)
    notes = []
    for module in args.lora_modules:
        encoder = adapter_prompt_encoder(module.path, base)
        read_extraction(module.path)
        try:
            encoder.prompt(one_turn("instruction"))
        except ValueError as error:
            raise ValueError(f"{module.path}: {error}; correct its chat_template.jinja") from None
        if template and encoder.template != template:
            notes.append(f"adapter {module.name} keeps its own chat template; --template_path is for the base")
    return notes


def largest_rank(name: str, folder: str) -> int:
    """Return the largest rank of an adapter's matrices.

    Raises ValueError if vLLM's reader refuses adapter_config.json, or a matrix has another rank than the file says.
    """
    label, path = f"adapter {name}: {folder}", Path(folder).expanduser()
    settings: Any = from_vllm("LoRAConfig")(max_lora_rank=max(get_args(from_vllm("MaxLoRARanks"))))
    try:
        helper = from_vllm("PEFTHelper").from_local_dir(str(path), None)
        helper.validate_legal(settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{label} is not supported by vLLM: {str(error).rstrip('.')}; {merge(folder)}") from None
    ranks = module_ranks(read_adapter_folder(folder))
    for module, rank in ranks.items():
        if rank != (configured := helper.get_rank_and_scaling(module)[0]):
            raise ValueError(
                f"{label} has rank {rank} for {module}, and {configured} in adapter_config.json; copy both again"
            )
    return max(ranks.values(), default=1)


def other_base(name: str, folder: str, model: str) -> list[str]:
    """Return a note if the folder of the base in adapter_config.json has another name than that of `model`."""
    tuned_on = read_json(Path(folder).expanduser() / "adapter_config.json").get("base_model_name_or_path")
    if not tuned_on or Path(tuned_on).name == Path(model).resolve().name:
        return []
    return [f"adapter {name} was tuned on {tuned_on}; {model} should be that model"]
