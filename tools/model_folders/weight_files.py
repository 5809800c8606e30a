"""Find the weight files of a model; refuse a folder with two sets of weights.

transformers reads the first file that exists of model.safetensors, model.safetensors.index.json, pytorch_model.bin and
pytorch_model.bin.index.json (_get_resolved_checkpoint_files in modeling_utils.py, 5.19). vLLM reads
consolidated*.safetensors if there are any, else the *.safetensors that model.safetensors.index.json lists, else all
*.safetensors, else all *.bin (DefaultModelLoader._prepare_weights, 0.32). From a folder with two sets of weights, the
two libraries therefore may load different models.
"""

from pathlib import Path
from zipfile import is_zipfile

from exact_tokenizers.tokenizer_folders import read_object

SETS = ("model.safetensors", "pytorch_model.bin")  # each as one file or as shards with an index
ADAPTER = "adapter_config.json"
NO_WEIGHTS = ("training_args.bin", "optimizer.bin")  # .bin files that vLLM does not read
CONSOLIDATED = "consolidated"  # prefix of files in Mistral's layout; published folders also have model*.safetensors
LFS_POINTER = b"version https://git-lfs"  # start of the files that `git clone` without Git LFS writes
LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")  # of config.json
MAX_LAYERS = 10_000  # more than any published model has; libraries build all layers before they report an error
ZIP = b"PK\3\4"  # first bytes of .bin files since PyTorch 1.6


def weight_files(folder: Path) -> list[Path]:
    """Return the files, in sorted order, that transformers and vLLM read a model's weights from; [] without weights.

    Raises FileNotFoundError if a shard is missing or outside the folder. Raises ValueError if a file or the index is
    damaged, if config.json has an impossible number of layers, if the two libraries read different files, or if the
    folder also has an adapter, which transformers adds to the model and vLLM does not.
    """
    check_layers(folder)
    for name in SETS:
        index = folder / f"{name}.index.json"
        listed = listed_files(index)
        if not index.is_file() and not (folder / name).is_file():
            continue
        files, source = ([name], name) if (folder / name).is_file() else (listed, index.name)
        if all((folder / file).is_file() for file in ("config.json", ADAPTER)):
            raise ValueError(
                f"{folder} has a model ({source}) and an adapter ({ADAPTER}), which transformers adds to the model and "
                "vLLM does not; move the adapter's files to a folder of their own"
            )
        for file in files:
            if Path(file).name != file or not (folder / file).is_file():
                raise FileNotFoundError(f"{folder} lacks {file}, which {source} lists; copy or download it again")
        if others := sorted(set(files_of_vllm(folder, listed)) - set(files)):
            other = index.name if others[0] in listed else others[0]
            remedy = "remove the one that is not this model's"
            if other.startswith(CONSOLIDATED):
                remedy = f"remove {CONSOLIDATED}*.safetensors"
            raise ValueError(
                f"{folder} has two sets of weights: transformers reads {source}, vLLM reads {other}; {remedy}"
            )
        for file in files:
            check_weight_file(folder / file)
        return [folder / file for file in files]
    return []


def check_layers(folder: Path) -> None:
    """Raise ValueError if config.json has more than MAX_LAYERS layers."""
    config = read_object(folder / "config.json")
    text = config.get("text_config")  # of a model with images
    for content in (config, text if isinstance(text, dict) else {}):
        for key in LAYER_KEYS:
            if isinstance(content.get(key), int | float) and content[key] > MAX_LAYERS:
                raise ValueError(
                    f"{folder}/config.json is damaged ({key} is {content[key]}, more than {MAX_LAYERS:,}); "
                    "download it again"
                )


def listed_files(index: Path) -> list[str]:
    """Return the sorted names of the files in an index of shards, [] if there is no index or an empty one."""
    weight_map = read_object(index).get("weight_map") or {}
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} is damaged (weight_map is not an object of file names); download it again")
    return sorted(set(map(str, weight_map.values())))


def check_weight_file(file: Path) -> None:
    """Raise ValueError if a weight file is a Git LFS pointer or is cut off; the weights are not read."""
    with file.open("rb") as stored:
        head = stored.read(len(LFS_POINTER))
    if head == LFS_POINTER:
        remedy = "run `git lfs pull` in its folder, or download it again"
        raise ValueError(f"{file} is a Git LFS pointer instead of the weights; {remedy}")
    if file.suffix == ".bin":
        if head.startswith(ZIP) and not is_zipfile(file):
            raise ValueError(f"{file} is cut off; download it again")
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} is cut off or damaged ({reason}); download it again") from None


def files_of_vllm(folder: Path, listed: list[str]) -> list[str]:
    """Return the names of the files that vLLM reads. listed: the shards in the index, if there is one."""
    stored = [file.name for file in folder.glob("*.safetensors")]
    if consolidated := [name for name in stored if name.startswith(CONSOLIDATED)]:
        return consolidated
    if stored:
        return listed if (folder / f"{SETS[0]}.index.json").is_file() else stored
    return [file.name for file in folder.glob("*.bin") if not file.name.endswith(NO_WEIGHTS)]
