"""Programs that bench_weights.py compares with tools/weight_diff.py on untied models; each runs in its own process.

    python benchmarks/weights_contenders.py published_recover|plain_add|peft_merge BASE ADDITIVE_DIFF|ADAPTER TARGET

- published_recover: like KnowLM's published weight_diff.py: transformers loads base and additive diff completely; the
  tensors are added one by one and saved. Nothing is verified.
- plain_add: the same sum without building a model; for each shard, torch adds the mapped tensors one by one and writes
  each sum to the new shard. Nothing is verified.
- peft_merge: transformers loads the base and peft the adapter; then merge_and_unload and save_pretrained.
"""

import os
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))


def published_recover(base: Path, diff: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM

    raw, total = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16) for folder in (base, diff))
    with torch.inference_mode():
        states = raw.state_dict()
        for name, value in total.state_dict().items():
            value.add_(states[name])
    total.save_pretrained(target)


def plain_add(base: Path, diff: Path, target: Path) -> None:
    from checkpoint_io.tensor_files import header
    from checkpoint_io.tensors import Spec
    from safetensors import safe_open

    target.mkdir()
    shutil.copy(base / "config.json", target)
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, "pt") as base_file, safe_open(diff / path.name, "pt") as diff_file:
            names = list(base_file.keys())
            specs = [Spec(name, "F16", tuple(base_file.get_slice(name).get_shape())) for name in names]
            with (target / path.name).open("wb") as file:
                file.write(header(specs, {"format": "pt"}))
                for name in names:
                    file.write((base_file.get_tensor(name) + diff_file.get_tensor(name)).numpy().data)
                file.flush()
                os.fsync(file.fileno())


def peft_merge(base: Path, adapter: Path, target: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(target)


if __name__ == "__main__":
    contenders = {"published_recover": published_recover, "plain_add": plain_add, "peft_merge": peft_merge}
    contenders[sys.argv[1]](*map(Path, sys.argv[2:5]))
