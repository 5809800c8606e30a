"""Find the files that hold the weights of a model; refuse a folder that has two sets of weights.

transformers reads the first existing of model.safetensors, its index of shards, pytorch_model.bin, its index of shards
(_get_resolved_checkpoint_files in modeling_utils.py, 5.19). vLLM reads all *.safetensors, or those in the index if
there is one, and without safetensors all *.bin (DefaultModelLoader._prepare_weights, 0.32). In a folder with two sets
of weights the two libraries therefore load different models.
"""

from pathlib import Path

from exact_tokenizers.tokenizer_folders import read_object

SETS = ("model.safetensors", "pytorch_model.bin")  # each as one file or as shards with an index
ADAPTER = "adapter_config.json"
NO_WEIGHTS = ("training_args.bin", "optimizer.bin")  # .bin files that vLLM does not read
# Prefix of weight files in Mistral's own layout; published folders have them besides model*.safetensors.
CONSOLIDATED = "consolidated"


def weight_files(folder: Path) -> list[Path]:
    """Return the files, in sorted order, that transformers and vLLM read a model's weights from; [] without weights.

    Raises FileNotFoundError if a shard is missing or outside the folder. Raises ValueError, which names both files, if
    the two libraries read different files, or if the folder also has an adapter, which transformers adds to the model
    and vLLM does not.
    """
    for name in SETS:
        index = folder / f"{name}.index.json"
        listed = sorted({str(file) for file in (read_object(index).get("weight_map") or {}).values()})
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
            raise ValueError(
                f"{folder} has two sets of weights: transformers reads {source}, vLLM reads {other}; remove the one "
                "that is not this model's"
            )
        return [folder / file for file in files]
    return []


def files_of_vllm(folder: Path, listed: list[str]) -> list[str]:
    """Return the names of the files that vLLM reads. listed: shards named by the index that transformers reads."""
    stored = [file.name for file in folder.glob("*.safetensors") if not file.name.startswith(CONSOLIDATED)]
    if stored:
        return listed if (folder / f"{SETS[0]}.index.json").is_file() else stored
    return [file.name for file in folder.glob("*.bin") if not file.name.endswith(NO_WEIGHTS)]
