"""Adapters that are served beside their base: --lora-modules NAME=FOLDER …, checked, and what vLLM needs for them.

launch_vllm.py calls it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from vllm_bridge.vllm_imports import part

from server_launch.adapter_folders import adapter_shapes, check_adapter, paired
from server_launch.adapter_prompts import adapter_prompt
from server_launch.launch_checks import merge, read_json

MOST_IN_A_BATCH = 8  # adapters, unless told; each has room of the largest rank in every layer, used or not

Named = list[tuple[str, str]]  # adapters: name, folder


def named_adapters(given: Sequence[Sequence[str]]) -> Named:
    """The words of each --lora-modules on a command line, as far as vLLM's own parser will take them.

    Raises ValueError where the option is there twice, of which vLLM would take the last.
    """
    if len(given) > 1:
        raise ValueError("--lora-modules is given twice; give it once, with all adapters behind it: a=FOLDER b=FOLDER")
    named = []
    for word in given[0]:
        name, equals, folder = word.partition("=")
        if not equals or "," in word:
            try:
                entry = json.loads(word)
                name, folder = entry["name"], entry["path"]
            except (ValueError, TypeError, LookupError):
                continue  # it says what is wrong
        named.append((name, folder))
    return named


def check_adapters(named: Named, model: str, served: Sequence[str] = ()) -> None:
    """Look through what requests will name; served: the base's names, where they are not its folder's.

    Raises ValueError or FileNotFoundError.
    """
    taken = set(served or [model])
    for name, folder in named:
        if not (isinstance(name, str) and name and isinstance(folder, str) and folder):
            raise ValueError("--lora-modules takes NAME=FOLDER; neither may be empty")
        if name in taken:
            remedy = "give it another" if name in (served or [model]) else "give each its own"
            raise ValueError(f"--lora-modules: the name {name} is taken already; {remedy}")
        taken.add(name)
        check_adapter(name, folder, model)


def preset_adapters(args: argparse.Namespace) -> list[str]:
    """Fill in what the adapters of the command line need and the user left open (None); returns what to say.

    Raises ValueError on an adapter that vLLM does not load, or that the user's own settings leave out.
    """
    named: Named = [(module.name, module.path) for module in args.lora_modules or ()]
    if not named:
        return []
    if args.enable_lora is False:
        raise ValueError("--no-enable-lora and --lora-modules contradict; give one of them")
    check_adapters(named, args.model, args.served_model_name or ())
    ranks = {name: largest_rank(name, folder) for name, folder in named}
    name, rank = max(ranks.items(), key=lambda entry: entry[1])
    if args.max_lora_rank is not None and args.max_lora_rank < rank:
        raise ValueError(f"--max-lora-rank {args.max_lora_rank} is less than the rank {rank} of {name}; leave it out")
    wanted = {
        "enable_lora": True,
        "max_lora_rank": next(allowed for allowed in sorted(get_args(part("MaxLoRARanks"))) if allowed >= rank),
        "max_loras": min(len(named), MOST_IN_A_BATCH),
    }
    if len(named) > (args.max_loras or MOST_IN_A_BATCH):
        wanted["max_cpu_loras"] = len(named)  # all stay in memory; vLLM would read those that wait from disk again
    left_open = {option: value for option, value in wanted.items() if getattr(args, option) is None}
    vars(args).update(left_open)
    options = [
        "--" + option.replace("_", "-") + ("" if value is True else f" {value}") for option, value in left_open.items()
    ]
    said = [f"{', '.join(ranks)} beside the base: {' '.join(options)}"] if options else []
    return said + [line for name, folder in named for line in other_base(name, folder, args.model)]


def check_adapter_prompts(args: argparse.Namespace) -> list[str]:
    """Render a prompt of each adapter of the command line; returns what to say of the template that was given.

    Raises ValueError where an adapter's tokenizer has other ids than the base's or its template cannot be rendered.
    """
    if not args.lora_modules:
        return []
    from chat_prompts.prompt_encoding import PromptEncoder, one_turn
    from extraction.extraction_form import read_extraction
    from transformers import AutoTokenizer

    given = part("load_chat_template")(args.chat_template)
    base = PromptEncoder(AutoTokenizer.from_pretrained(args.tokenizer or args.model), given)
    said = []
    for module in args.lora_modules:
        prompt = adapter_prompt(module.path, base)
        read_extraction(module.path)
        try:
            prompt.prompt(one_turn("instruction"))
        except ValueError as error:
            raise ValueError(f"{module.path}: {error}; correct its chat_template.jinja") from None
        if given and prompt.template != given:
            said.append(f"adapter {module.name} keeps its own chat template; --template_path is for the base")
    return said


def largest_rank(name: str, folder: str) -> int:
    """The largest rank of an adapter's matrices.

    Raises ValueError where vLLM does not load it: what its adapter_config.json asks for is judged by vLLM's own reader.
    """
    said, here = f"adapter {name}: {folder}", Path(folder).expanduser()
    settings: Any = part("LoRAConfig")(max_lora_rank=max(get_args(part("MaxLoRARanks"))))
    try:
        helper = part("PEFTHelper").from_local_dir(str(here), None)
        helper.validate_legal(settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{said} is not for vLLM: {str(error).rstrip('.')}; {merge(folder)}") from None
    ranks = {1}
    for module, pair in paired(said, folder, adapter_shapes(said, here)).items():
        ranks.add(rank := pair.get("lora_A", pair.get("lora_embedding_A", (0,)))[0])
        if rank != (told := helper.get_rank_and_scaling(module)[0]):
            raise ValueError(f"{said} has rank {rank} for {module}, and {told} in adapter_config.json; get both again")
    return max(ranks)


def other_base(name: str, folder: str, model: str) -> list[str]:
    """A line where the folder that the adapter was tuned on was called something else than the one it is served on."""
    tuned_on = read_json(Path(folder).expanduser() / "adapter_config.json").get("base_model_name_or_path")
    if not tuned_on or Path(tuned_on).name == Path(model).resolve().name:
        return []
    return [f"adapter {name} was tuned on {tuned_on}; {model} should be that model"]
