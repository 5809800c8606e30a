"""What can be wrong with an adapter's folder and with the base it is served on, in one line before they are loaded.

vLLM fails on some of it when the engine stands, minutes later, and does not notice the rest: an adapter of a narrower
model is copied into a corner of the matrices, layers that the base does not have are dropped, and either way the
answers are of no model that was ever trained.
"""

import re
from pathlib import Path
from typing import Any

from server_launch.launch_checks import merge, read_json

Shapes = dict[str, tuple[int, ...]]  # of tensors, by their names
Pairs = dict[str, dict[str, tuple[int, ...]]]  # by the module they change: {"lora_A": (r, in), "lora_B": (out, r)}

PART = re.compile(r"(?:base_model\.model\.)?(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.weight)?")
COPY = re.compile(r".+\.(embed_tokens|lm_head)\.base_layer\.weight")  # PEFT's copy of the base's; vLLM passes it over


def check_adapter(name: str, folder: str, base: str) -> None:
    """Raise FileNotFoundError or ValueError unless `folder` holds a LoRA adapter whose tensors fit the base.

    name: as requests will have it; base: the base's folder. What a base's files do not tell (a name on the hub, weights
    in .bin) is left to vLLM.
    """
    here, said = Path(folder).expanduser(), f"adapter {name}: {folder}"
    if not here.is_dir():
        raise FileNotFoundError(
            f"{said} does not exist; --lora-modules takes NAME=FOLDER, and python tools/download.py gets one of the hub"
        )
    if not (here / "adapter_config.json").is_file():
        if (here / "config.json").is_file():
            raise ValueError(f"{said} is a whole checkpoint and no adapter; serve it by itself, with --model {folder}")
        raise FileNotFoundError(f"{said} has no adapter_config.json; give a folder that finetune/finetune.py wrote")
    kind = read_json(here / "adapter_config.json").get("peft_type", "LORA")
    if kind != "LORA":
        raise ValueError(f"{said} is an adapter of type {kind}, and vLLM loads LORA only; {merge(folder)}")
    check_fit(said, paired(said, folder, adapter_shapes(said, here)), Path(base))


def adapter_shapes(said: str, folder: Path) -> Shapes:
    """Shapes of an adapter's tensors, from its safetensors or, of old, its .bin."""
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return stored_shapes(said, folder / name)
    raise FileNotFoundError(f"{said} has no adapter_model.safetensors; copy or train it again")


def stored_shapes(said: str, file: Path) -> Shapes:
    """Shapes of the tensors of a file, without its numbers; said: whose file it is, for the error."""
    try:
        if file.suffix == ".bin":
            import torch

            weights = torch.load(file, map_location="meta", weights_only=True)
            return {name: tuple(weight.shape) for name, weight in weights.items()}
        from safetensors import safe_open

        with safe_open(file, framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except Exception as error:  # of whatever library reads it
        raise ValueError(f"{said}/{file.name} is damaged ({' '.join(str(error).split())}); copy it again") from None


def paired(said: str, folder: str, shapes: Shapes) -> Pairs:
    """An adapter's matrices by the module of the base that they change; ValueError on tensors of another kind."""
    pairs: Pairs = {}
    for name, shape in shapes.items():
        if COPY.fullmatch(name):
            continue
        found = PART.fullmatch(name)
        if found is None or len(shape) != 2:
            raise ValueError(f"{said} holds {name}, which vLLM does not load as an adapter; {merge(folder)}")
        pairs.setdefault(found[1], {})[found[2]] = shape
    for module, pair in pairs.items():
        if set(pair) not in ({"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"}):
            raise ValueError(f"{said} has one matrix of the two for {module}; copy it again")
    if not pairs:
        raise ValueError(f"{said} has no tensors; train or copy it again")
    return pairs


def check_fit(said: str, pairs: Pairs, base: Path) -> None:
    """Raise ValueError unless each pair has a module of its shape in the base's safetensors.

    The names in the files of a model for text and pictures are not those of its modules; it is left to vLLM.
    """
    config: dict[str, Any] = read_json(base / "config.json") if (base / "config.json").is_file() else {}
    found: Shapes = {}
    for file in [] if "text_config" in config else base.glob("*.safetensors"):
        found |= stored_shapes(str(base), file)
    modules: Shapes = {tensor.rpartition(".")[0]: () for tensor in found}
    if not config.get("quantization_config"):  # whose tensors are packed
        modules |= {tensor.removesuffix(".weight"): shape for tensor, shape in found.items() if len(shape) == 2}
    if "lm_head" not in modules and "model.embed_tokens" in modules:
        modules["lm_head"] = modules["model.embed_tokens"]  # tied
    for module, pair in pairs.items() if modules else ():
        if ".experts" in module:  # fused in memory, under names of their own
            continue
        own, there = changed_shape(pair), modules.get(module)
        if there is None:
            raise ValueError(f"{said} changes {module}, which {base} does not have; name the base it was tuned on")
        if there and there != own:
            raise ValueError(
                f"{said} changes {module} as a matrix of {own[0]} by {own[1]}, which in {base} has {there[0]} by "
                f"{there[1]}; name the base it was tuned on"
            )


def changed_shape(pair: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    """(rows, columns) of the base's matrix that a pair was made for; an embedding's product is stored transposed."""
    if "lora_A" in pair:
        return pair["lora_B"][0], pair["lora_A"][1]
    return pair["lora_embedding_A"][1], pair["lora_embedding_B"][0]
