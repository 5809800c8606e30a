"""Check adapters that are served with their base (--lora-modules NAME=FOLDER …), and set vLLM's options for them.

vLLM encodes text prompts and decodes answers with the base's tokenizer, also for requests to an adapter. An adapter's
tokenizer must therefore have the same pieces with the same ids as the base's; it may lack the last added tokens.
"""

from command_line.command_errors import one_line

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from adapter_checks import base_fit
from adapter_checks.adapter_folder import AdapterFolder
from chat_prompts.prompt_encoding import PromptEncoder
from chat_prompts.template_files import folder_template, missing_template
from exact_tokenizers.tokenizer_folders import exact_tokenizer_folder
from extraction.extraction_form import read_extraction
from model_folders.own_code import OwnCodeError, from_folder
from vllm_bridge.vllm_imports import from_vllm

from server_launch.launch_checks import merge_remedy

MAX_BATCH_ADAPTERS = 8  # highest preset of --max-loras; each slot reserves memory for the largest rank in every layer
SERVED_KINDS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_adapters(
    adapters: Sequence[tuple[str, str]], model: str, served: Sequence[str] = ()
) -> dict[str, AdapterFolder]:
    """Check the names and folders of adapters; return name -> adapter. Raises ValueError or FileNotFoundError.

    adapters: (name, folder) of each; model: the base's folder; served: the base's names (--served-model-name), if they
    are not the folder.
    """
    taken = set(served or [model])
    found = {}
    for name, folder in adapters:
        if not (isinstance(name, str) and name and isinstance(folder, str) and folder):
            raise ValueError("--lora-modules takes NAME=FOLDER; neither may be empty")
        if name in taken:
            remedy = "choose another" if name in (served or [model]) else "give each adapter its own"
            raise ValueError(f"--lora-modules: the name {name} is already used; {remedy}")
        taken.add(name)
        found[name] = check_served_adapter(name, folder, model)
    return found


def preset_adapters(args: argparse.Namespace) -> list[str]:
    """Set vLLM's LoRA options that the user did not give (None) for the adapters of --lora-modules.

    Returns notices to print. Raises ValueError or FileNotFoundError for an adapter that vLLM does not load, and for
    options that contradict the adapters.
    """
    if not args.lora_modules:
        return []
    if args.enable_lora is False:
        raise ValueError("--no-enable-lora and --lora-modules contradict each other; remove one of them")
    named = [(module.name, module.path) for module in args.lora_modules]
    adapters = check_adapters(named, args.model, args.served_model_name or ())
    name, rank = max(
        ((name, largest_rank(name, adapter)) for name, adapter in adapters.items()), key=lambda pair: pair[1]
    )
    if args.max_lora_rank is not None and args.max_lora_rank < rank:
        raise ValueError(f"--max-lora-rank {args.max_lora_rank} is less than the rank {rank} of {name}; remove it")
    wanted = {
        "enable_lora": True,
        "max_lora_rank": next(allowed for allowed in sorted(get_args(from_vllm("MaxLoRARanks"))) if allowed >= rank),
        "max_loras": min(len(adapters), MAX_BATCH_ADAPTERS),
    }
    if len(adapters) > (args.max_loras or MAX_BATCH_ADAPTERS):
        # Keep all adapters in memory: by default, vLLM would read inactive adapters from disk again.
        wanted["max_cpu_loras"] = len(adapters)
    presets = {option: value for option, value in wanted.items() if getattr(args, option) is None}
    vars(args).update(presets)
    options = [
        "--" + option.replace("_", "-") + ("" if value is True else f" {value}") for option, value in presets.items()
    ]
    notices = [f"adapters {', '.join(adapters)}: {' '.join(options)}"] if options else []
    for name, adapter in adapters.items():
        tuned_on = adapter.config.get("base_model_name_or_path")
        if tuned_on and Path(tuned_on).name != Path(args.model).resolve().name:
            notices.append(f"adapter {name} was tuned on {tuned_on}; {args.model} should be that model")
    return notices


def largest_rank(name: str, adapter: AdapterFolder) -> int:
    """Return the largest rank of an adapter's matrices; raises ValueError if vLLM refuses its adapter_config.json."""
    settings: Any = from_vllm("LoRAConfig")(max_lora_rank=max(get_args(from_vllm("MaxLoRARanks"))))
    try:
        from_vllm("PEFTHelper").from_local_dir(str(adapter.path), None).validate_legal(settings)
    except (ValueError, TypeError) as error:
        reason = f"is not supported by vLLM: {str(error).rstrip('.')}"
        raise ValueError(f"adapter {name}: {adapter.path} {reason}; {merge_remedy(str(adapter.path))}") from None
    shapes = [shape for parts in adapter.parts.values() for kind, shape in parts.items() if kind.endswith("_A")]
    return max((rank for rank, _ in shapes), default=1)


def check_prompts(args: argparse.Namespace) -> list[str]:
    """Render a prompt with the base and with each adapter; return notices on missing and ignored files.

    A model with a template but no extraction.json may have been tuned on another wording than the default of /extract.
    Raises ValueError if a tokenizer cannot be read, if the ids of an adapter's tokenizer differ from the base's, if a
    template cannot be rendered, or if an adapter's extraction.json is invalid. A base on the hub is not checked.
    """
    if not Path(args.model).is_dir() or args.skip_tokenizer_init:
        return []
    template = from_vllm("load_chat_template")(args.chat_template)
    base = PromptEncoder(load_tokenizer(args.tokenizer or args.model, args.trust_remote_code), template)
    option = "--template_path finetune/templates/alpaca.jinja"
    notices = [] if base.template else [missing_template(args.model, option)]
    extraction = read_extraction(args.model)
    default_wording = [args.model] if base.template and not extraction else []
    place = args.template_path or args.chat_template or f"{args.model}/chat_template.jinja"
    check_rendering(base, place, "correct it, or give another with --template_path")
    for module in args.lora_modules or ():
        encoder = adapter_prompt_encoder(module.path, base, args.trust_remote_code)
        if not (read_extraction(module.path) or extraction) and encoder.template:
            default_wording.append(f"adapter {module.name}")
        check_rendering(encoder, module.path, "correct its chat_template.jinja")
        if not encoder.template:
            notices.append(f"adapter {module.name}: {missing_template(module.path, option)}")
        if template and encoder.template != template:
            notices.append(f"adapter {module.name} keeps its own chat template; --template_path is for the base")
    if default_wording:
        notices.append(
            f"{', '.join(default_wording)}: no extraction.json, so /extract asks in its default wording. A model tuned "
            "to extract in another wording needs the extraction.json of its tuning in its folder"
        )
    return notices


def check_rendering(encoder: Any, place: str, remedy: str) -> None:
    """Raise ValueError, with `place` and `remedy` in its message, if an encoder cannot render a prompt."""
    try:
        encoder.prompt_ids([{"role": "user", "content": "instruction", "input": ""}])
    except ValueError as error:
        raise ValueError(f"{place}: {error}; {remedy}") from None


def check_served_adapter(name: str, folder: str, base: str) -> AdapterFolder:
    """Read an adapter's folder and compare it with its base.

    name: the adapter's name in requests; base: a checkpoint folder, or a name on the hub, which is not compared.
    Raises FileNotFoundError or ValueError, each with one line, if vLLM cannot serve the adapter.
    """
    try:
        adapter = base_fit.read_adapter_for_base(folder, base)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"adapter {name}: {error}") from None
    if adapter.has_adapter_name_in_keys:
        raise ValueError(
            f"adapter {name}: the tensors of {folder} are named lora_A.default.weight, which vLLM does not load; "
            f"{merge_remedy(folder)}"
        )
    for module, parts in adapter.parts.items():
        # PEFT may save copies of these two matrices of the base, which vLLM skips.
        copies = {"base_layer"} if module.rpartition(".")[2] in (base_fit.EMBEDDING, base_fit.OUTPUT) else set()
        unsupported = sorted(set(parts) - SERVED_KINDS - copies)
        if unsupported:
            raise ValueError(
                f"adapter {name}: {folder} holds {unsupported[0]} of {module}, which vLLM does not load as an "
                f"adapter; {merge_remedy(folder)}"
            )
    return adapter


def adapter_prompt_encoder(folder: str, base: PromptEncoder, trust_remote_code: bool = False) -> PromptEncoder:
    """Return the prompt encoder of an adapter, with the base's tokenizer or template if its folder has none.

    base: the base's encoder, with the template of --template_path if that option is given. The base's tokenizer is also
    used if the adapter's tokenizer differs only in lacking the base's last added tokens. Raises ValueError if the
    adapter's tokenizer cannot be read, or differs otherwise.
    """
    path = Path(folder).expanduser()
    template = folder_template(path) or base.template
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        return PromptEncoder(base.tokenizer, template)
    tokenizer = load_tokenizer(path, trust_remote_code)
    ids, base_ids = tokenizer.get_vocab(), base.tokenizer.get_vocab()
    if ids != base_ids and base_fit.is_prefix(ids, base_ids):
        return PromptEncoder(base.tokenizer, template)
    if different := set(ids.items()) ^ set(base_ids.items()):
        piece = min(different, key=lambda entry: (entry[1], entry[0]))[0]
        raise ValueError(
            f"{folder} has another tokenizer than the base: {len({name for name, _ in different})} pieces differ, "
            f"{piece!r} has id {ids.get(piece, 'none')} in the adapter and {base_ids.get(piece, 'none')} in the base; "
            "give the base that the adapter was trained on, or merge it into that base"
        )
    return PromptEncoder(tokenizer, template)


def load_tokenizer(folder: str | Path, trust_remote_code: bool) -> Any:
    """Return the tokenizer of a folder; raises ValueError if it cannot be read."""
    from transformers import AutoTokenizer

    try:
        exact = exact_tokenizer_folder(folder, trust_remote_code)
        return from_folder(AutoTokenizer, exact, trust_remote_code, local_files_only=False)
    except OwnCodeError:
        raise
    except Exception as error:  # the tokenizer libraries raise exceptions of many classes
        reason = f"the tokenizer cannot be read ({one_line(error)})"
        raise ValueError(f"{folder}: {reason}; copy the tokenizer files of its base into it") from error
