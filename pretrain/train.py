"""Continue pretraining: all weights of a LLaMA-family checkpoint on a corpus, with Trainer and DeepSpeed ZeRO.

    python pretrain/train.py --model_name_or_path base --data_path corpus/all --output_dir trained
    deepspeed --num_gpus 2 pretrain/train.py --deepspeed pretrain/configs/zero3.json --bf16 \
        --model_name_or_path base --data_path corpus/all --output_dir trained --per_device_train_batch_size 8

The second line is also the one for two ranks on a machine without a GPU. A row is one sample of the corpus, padded to
the longest of its micro batch. The result is a checkpoint folder; checkpoint-* in it serve --resume_from_checkpoint.
Options: pretraining_arguments.py. The corpus: corpus.py.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from corpus import Corpus
    from pretraining_arguments import PretrainingArguments

IGNORED = -100  # the label of a position without loss
WINDOW = 50  # runs of rows that are sorted by length together


# --- before anything is loaded ----------------------------------------------------------------------------------------


def check_folders(args: "PretrainingArguments") -> None:
    """Raise FileNotFoundError or ValueError on a base that is no checkpoint, or an output that would be overwritten."""
    base, output = Path(args.model_name_or_path), Path(str(args.output_dir))
    if not base.is_dir():
        raise FileNotFoundError(f"{base} does not exist; --model_name_or_path takes a checkpoint folder")
    if not (base / "config.json").is_file():
        raise FileNotFoundError(f"{base} has no config.json, so it is no checkpoint folder")
    if not (base / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{base} has no tokenizer.json; build it: python tools/build_tokenizer.py "
            f"--tokenizer_model {base}/tokenizer.model --output_dir {base}"
        )
    if (output / "config.json").exists():
        raise ValueError(f"{output} holds a finished model; name a new folder with --output_dir")
    if args.resume_from_checkpoint:
        args.resume_from_checkpoint = resume_point(str(args.resume_from_checkpoint), output)
    elif any(output.glob("checkpoint-*")):
        raise ValueError(
            f"{output} holds checkpoints of an earlier run; go on with --resume_from_checkpoint True, "
            "or name a new folder"
        )


def resume_point(given: str, output: Path) -> str | None:
    """The checkpoint to go on from: a path as it is, True as the newest in `output`, False as none."""
    if given.lower() in ("false", "none", "no"):
        return None
    if given.lower() in ("true", "yes", "last"):
        found = sorted(output.glob("checkpoint-*/trainer_state.json"), key=lambda p: int(p.parent.name.split("-")[1]))
        if not found:
            raise FileNotFoundError(f"{output} holds no checkpoint-*; start without --resume_from_checkpoint")
        return str(found[-1].parent)
    if not Path(given, "trainer_state.json").is_file():
        raise FileNotFoundError(f"{given} is no checkpoint to resume from (it has no trainer_state.json)")
    return given


def check_corpus(corpus: "Corpus", base: str, model_max_length: int) -> None:
    """Raise ValueError on a corpus that was made for another tokenizer, vocabulary or context than the base's."""
    from tokenizers import Tokenizer

    config = json.loads(Path(base, "config.json").read_text(encoding="utf-8"))
    pieces = Tokenizer.from_file(f"{base}/tokenizer.json").get_vocab(with_added_tokens=True)
    table = "".join(f"{i}\t{json.dumps(piece)}\n" for piece, i in sorted(pieces.items(), key=lambda item: item[1]))
    if hashlib.sha256(table.encode()).hexdigest() != corpus.fingerprint:
        raise ValueError(
            f"{corpus.prefix} was written with another tokenizer than that of {base}; "
            f"write it again: python pretrain/preprocess.py --mode write --tokenizer_path {base} …"
        )
    if corpus.vocab_size > config["vocab_size"]:
        raise ValueError(
            f"{corpus.prefix} may hold ids up to {corpus.vocab_size - 1}, and {base} has {config['vocab_size']} "
            "embeddings; it is the wrong checkpoint, or its embeddings were not enlarged with its tokenizer"
        )
    context = config.get("max_position_embeddings", model_max_length)
    limit = model_max_length or context
    if limit > context:
        raise ValueError(f"--model_max_length {limit} is over the context of {base}, {context}; lower it")
    longest = int(corpus.lengths.max())
    if longest > limit:
        raise ValueError(
            f"{corpus.prefix} holds samples of up to {longest} tokens, over the limit of {limit}; "
            f"write it again with --seq_length {limit}, or raise --model_max_length (context of the base: {context})"
        )


# --- rows -------------------------------------------------------------------------------------------------------------


class Rows:
    """The corpus as Trainer's dataset: row i is sample i; no token is read before it is asked for."""

    def __init__(self, corpus: "Corpus") -> None:
        self.corpus = corpus

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.corpus[index]}  # (tokens,) uint16 or int32


def grouped_order(lengths: "np.ndarray", rows: int, seed: int) -> "np.ndarray":
    """All samples in an order whose runs of `rows` have similar lengths, the runs themselves shuffled.

    lengths: (samples,), in tokens. Shuffled runs matter: in an order from long to short, which wastes as little, the
    languages of a corpus would take turns, since their lengths differ.
    """
    import numpy as np

    draw = np.random.default_rng(seed)
    order = draw.permutation(len(lengths))
    window = rows * WINDOW
    for start in range(0, len(order), window):
        part = order[start : start + window]
        order[start : start + window] = part[np.argsort(lengths[part], kind="stable")]
    whole = len(order) // rows * rows
    return np.concatenate([draw.permutation(order[:whole].reshape(-1, rows)).reshape(-1), order[whole:]])


def collate(rows: list[dict[str, Any]], pad_id: int) -> dict[str, "torch.Tensor"]:
    """Pad on the right to the longest row; by length, since the padding id may be a token of the text too.

    Returns input_ids, attention_mask and labels, each (rows, tokens) int64.
    """
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for target, mask, row in zip(input_ids, attention_mask, rows, strict=True):
        length = len(row["input_ids"])
        target[:length] = torch.from_numpy(row["input_ids"].astype("int64"))
        mask[:length] = 1
    labels = input_ids.masked_fill(attention_mask == 0, IGNORED)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


# --- training ---------------------------------------------------------------------------------------------------------


def load_model(args: "PretrainingArguments") -> Any:
    """The base with float32 weights (mixed precision keeps them as masters), partitioned while loading under ZeRO-3.

    Raises ValueError where the checkpoint lacks weights: transformers would draw them at random.
    """
    import torch
    from transformers import AutoModelForCausalLM

    loading: Any = AutoModelForCausalLM.from_pretrained(
        args.model_name_or_path, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    model, loaded = loading
    wrong = sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]]))
    if wrong:
        raise ValueError(f"{args.model_name_or_path} lacks {len(wrong)} weights, {wrong[0]} for one; get it again")
    return model


def make_trainer(args: "PretrainingArguments", model: Any, tokenizer: Any, corpus: "Corpus") -> Any:
    """Trainer with lengths from the corpus's index, tokens per second in its log, and an end on NaN."""
    from functools import partial

    from torch.utils.data import Sampler
    from transformers import Trainer

    class GroupedSampler(Sampler[int]):
        """grouped_order; every epoch has its own, which a resumed run finds again."""

        def __init__(self, lengths: "np.ndarray", rows: int, seed: int) -> None:
            self.lengths, self.rows, self.seed, self.epoch = lengths, rows, seed, 0

        def __len__(self) -> int:
            return len(self.lengths)

        def __iter__(self) -> Iterator[int]:
            return iter(grouped_order(self.lengths, self.rows, self.seed + self.epoch).tolist())

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    class PretrainingTrainer(Trainer):
        last = (time.perf_counter(), 0)  # when the log was last written, and the tokens seen by then

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            if self.args.train_sampling_strategy != "group_by_length":
                return super()._get_train_sampler(train_dataset)
            rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            return GroupedSampler(corpus.lengths, rows, self.args.seed)

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if not abs(logs.get("loss", 0.0)) < float("inf"):
                raise ValueError(f"the loss is {logs['loss']} at step {self.state.global_step}; lower --learning_rate")
            now, seen = time.perf_counter(), self.state.num_input_tokens_seen
            if "loss" in logs and seen:
                logs["tokens_per_second"] = round((seen - self.last[1]) / (now - self.last[0]))
                logs.pop("num_input_tokens_seen", None)
                PretrainingTrainer.last = (now, int(seen))
            super().log(logs, start_time)

    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return PretrainingTrainer(
        model=model, args=args, train_dataset=Rows(corpus), data_collator=partial(collate, pad_id=pad_id),
        processing_class=tokenizer,
    )  # fmt: skip


# --- the result -------------------------------------------------------------------------------------------------------


def write_records(
    folder: Path, args: "PretrainingArguments", corpus: "Corpus", history: list[dict[str, float]]
) -> None:
    """run.json, train_log.jsonl and training_curves.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    run = {
        "script": "pretrain/train.py",
        "arguments": args.to_sanitized_dict(),
        "seed": args.seed,
        "versions": {name: version(name) for name in ("torch", "transformers", "deepspeed", "accelerate")},
        "data": {args.data_path: corpus.sidecar["sha256"]},
    }
    (folder / "run.json").write_text(json.dumps(run, indent=2, default=str, ensure_ascii=False) + "\n")
    (folder / "train_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))
    points = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    if points:
        axes.plot(*zip(*points, strict=True))
    axes.set(xlabel="step", ylabel="loss per token", ylim=(0, None), title=args.data_path)
    figure.savefig(folder / "training_curves.png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def save(trainer: Any, tokenizer: Any, args: "PretrainingArguments", corpus: "Corpus") -> None:
    """Write the whole result beside its place, then move it file by file into --output_dir, config.json last.

    Every rank calls this: gathering the weights is a joint step. A folder without config.json is not finished.
    """
    output = Path(str(args.output_dir))
    scratch = output / ".partial"
    if args.should_save:
        shutil.rmtree(scratch, ignore_errors=True)
    trainer.save_model(str(scratch))
    if not args.should_save:
        return
    (scratch / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same
    tokenizer.save_pretrained(scratch)
    for name in ("tokenizer.model", "generation_config.json"):
        if Path(args.model_name_or_path, name).is_file():
            shutil.copyfile(Path(args.model_name_or_path, name), scratch / name)
    write_records(scratch, args, corpus, trainer.state.log_history)
    for file in sorted(scratch.iterdir(), key=lambda file: (file.name == "config.json", file.name)):
        file.chmod(0o644)  # safetensors writes files that only their owner may read
        file.replace(output / file.name)
    scratch.rmdir()


def join_ranks(argv: list[str]) -> list[str]:
    """Let the ranks that a launcher started meet; returns the options that they need on a machine without a GPU.

    There, Trainer would run each rank by itself unless it is told that the device is the CPU, accelerate would forget
    DeepSpeed unless its environment names it, and zero.Init sees a world of one unless the ranks have met before
    from_pretrained.
    """
    if "LOCAL_RANK" not in os.environ:
        return []
    import torch

    under_deepspeed = any(word.partition("=")[0] == "--deepspeed" for word in argv)
    if under_deepspeed:
        import deepspeed

        try:
            deepspeed.init_distributed()
        except torch.distributed.DistNetworkError:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise ValueError(
                f"the ranks cannot meet at {where}, perhaps since another run does; try deepspeed --master_port N"
            ) from None
    if torch.cuda.is_available():
        return []
    if under_deepspeed:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    return ["--use_cpu", "True"]


def leave_ranks() -> None:
    """Wait for the other ranks and part in order: one that ends while others still save may abort on its way out."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def main(argv: list[str]) -> None:
    """Parse, check, load, train, save."""
    from corpus import Corpus
    from pretraining_arguments import parse

    rank = int(os.environ.get("RANK", "0"))
    args, notices = parse(argv + join_ranks(argv), __doc__ or "")
    if args.world_size != int(os.environ.get("WORLD_SIZE", "1")):
        raise ValueError(
            f"{os.environ['WORLD_SIZE']} ranks were launched and Trainer sees {args.world_size}; "
            "start them with deepspeed, torchrun or accelerate launch"
        )
    for notice in notices if rank == 0 else ():
        print(f"notice: {notice}", file=sys.stderr)
    check_folders(args)
    corpus = Corpus(args.data_path)
    check_corpus(corpus, args.model_name_or_path, args.model_max_length)

    from transformers import AutoTokenizer, set_seed
    from transformers.utils import logging as transformers_logging

    if args.disable_tqdm:
        transformers_logging.disable_progress_bar()
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path, local_files_only=True)
    trainer = make_trainer(args, load_model(args), tokenizer, corpus)
    if rank == 0:
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        print(
            f"{args.data_path}: {len(corpus)} samples, {corpus.sidecar['tokens']} tokens; "
            f"{rows} rows a step on {args.world_size} ranks ({args.device.type})",
            flush=True,
        )
    result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    save(trainer, tokenizer, args, corpus)
    if rank == 0:
        seconds = result.metrics["train_runtime"]
        print(f"{args.output_dir}: {result.global_step} steps in {seconds:.0f} s, loss {result.training_loss:.4f}")
    leave_ranks()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
