"""The options of finetune.py: the published names on top of every option of Trainer, old spellings translated.

`parse(argv)` gives the options with every default resolved and the notices to print.
"""

import difflib
import importlib.util
import json
import os
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import HfArgumentParser, TrainingArguments

from instruction_tuning.ranks import meet

# What transformers 5 renamed, and what it dropped without a successor that we would need.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "warmup_ratio": "warmup_steps",  # below 1 it is a share of all steps
    "no_cuda": "use_cpu",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
    "torchdynamo": "torch_compile_backend",
}
WITHOUT_EFFECT = {
    "overwrite_output_dir": "an output folder is never overwritten",
    "save_safetensors": "weights are always written as safetensors",
    **dict.fromkeys(
        ("fp16_backend", "fp16_opt_level", "half_precision_backend", "use_mps_device",
         "jit_mode_eval", "use_ipex", "xpu_backend", "tpu_num_cores", "tpu_metrics_debug", "mp_parameters", "ray_scope",
         "past_index", "sharded_ddp", "dispatch_batches", "split_batches", "include_tokens_per_second",
         "include_inputs_for_metrics", "use_legacy_prediction_loop"),
        "Trainer no longer has it",
    ),
}  # fmt: skip
SWITCHES = {  # boolean options that became a value of another one: (option, value when on, value when off)
    "group_by_length": ("train_sampling_strategy", "group_by_length", "random"),
    "adafactor": ("optim", "adafactor", ""),
}


def option(default: Any, help: str, *aliases: str, **more: Any) -> Any:
    metadata = {"help": help} | ({"aliases": list(aliases)} if aliases else {})
    return field(default=default, metadata=metadata, **more)


@dataclass
class TuningArguments(TrainingArguments):
    """Options of the tuning script; what is not listed here is Trainer's and keeps its meaning."""

    base_model: str = option("", "folder of the checkpoint to tune")
    data_path: list[str] = field(
        default_factory=list,
        metadata={"help": "JSON, JSONL or parquet files of rows, or folders; name=path names a source"},
    )
    mix: str = option("", "proportions of the sources in every stretch of an epoch: zh=2,en=1; without, all rows once")
    eval_data_path: str = option("", "a file of held-out rows, instead of --val_set_size")
    cache_dir: str = option("", "where tokenised rows are kept; ~/.cache/knowlm/rows without")
    method: Literal["lora", "qlora", "full"] = option("lora", "an adapter, one on a 4-bit base, or all weights")
    prompt_template_name: str = option(
        "",
        "a file in finetune/templates without .jinja, or the path of one, or of an alpaca .json; without it the base's "
        "own template, or alpaca where the base has none",
    )
    extraction_path: str = option(
        "", "extraction.json to carry along: how the tuned model is asked to extract; the one beside the data without"
    )
    cutoff_len: int = option(512, "tokens of the longest row, its end included")
    train_on_inputs: bool = option(False, "supervise the prompt too, not only the answer")
    val_set_size: float = option(0.0, "rows held out for eval_loss: a count, or a fraction below 1")
    batch_size: int | None = option(
        None, "global batch: micro batch x accumulation x ranks; 128 unless --gradient_accumulation_steps is given"
    )
    packing: Literal["auto", "true", "false"] = option(
        "auto",
        "rows one after another without padding, where attention keeps them apart; batch_size counts rows anyway",
    )
    share_prefixes: bool = option(True, "compute once what rows of a line begin with in common (not FlashAttention)")
    supervised_head: bool = option(True, "apply the output matrix only where a token is foretold that has a label")
    attn_implementation: str = option("", "of transformers; without, FlashAttention where there is one, else sdpa")
    load_in: Literal["", "8bit", "4bit"] = option("", "hold the frozen base in so few bits (bitsandbytes)")
    eval_generate: bool = option(False, "answer the held-out rows at every evaluation, and score the answers")
    eval_max_new_tokens: int = option(256, "tokens of such an answer")
    servable: bool = option(False, "refuse what vLLM cannot load as an adapter")
    show_rows: bool = option(True, "print three rows as the model sees them, before training")
    lora_r: int = option(16, "rank of the adapter")
    lora_alpha: int = option(32, "the adapter's output is scaled by alpha / r")
    lora_dropout: float = option(0.0, "dropout before the adapter; above 0, prefixes are not shared")
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={
            "help": "all-linear, or names of modules: q_proj v_proj, q_proj,v_proj and [q_proj,v_proj] are the same"
        },
    )
    lora_modules_to_save: list[str] = field(
        default_factory=list, metadata={"help": "modules trained whole beside the adapter: embed_tokens,lm_head"}
    )
    lora_bias: Literal["none", "all", "lora_only"] = option("none", "biases to train")
    lora_init: str = option("default", "first value of the adapter: default, gaussian, pissa, pissa_niter_16, …")
    use_rslora: bool = option(False, "scale by alpha / sqrt(r) (rank-stabilised)")
    use_dora: bool = option(False, "train magnitude and direction apart (DoRA)")
    loraplus_lr_ratio: float | None = option(None, "learning rate of B over that of A (LoRA+; its authors took 16)")
    wandb_project: str = option("", "log to this project of Weights & Biases")
    wandb_run_name: str = option("", "name of the run there")
    wandb_watch: str = option("", "what it watches: false, gradients or all")
    wandb_log_model: str = option("", "whether it keeps the checkpoints: false, end or checkpoint")

    # Trainer's own, with other defaults or a second name.
    per_device_train_batch_size: int = option(4, "rows per rank and forward pass", "--micro_batch_size")
    gradient_accumulation_steps: int = option(0, "micro batches per step; 0: what --batch_size asks for")
    num_train_epochs: float = option(3.0, "passes over the data", "--num_epochs")
    learning_rate: float = option(3e-4, "peak learning rate")
    warmup_steps: float = option(0.03, "steps of linear warm-up; below 1: a share of all steps")
    logging_steps: float = option(10, "log every so many steps; below 1: a share of all steps")
    logging_first_step: bool = option(True, "log the first step too")
    save_steps: float = option(200, "keep a checkpoint to resume from every so many steps")
    save_total_limit: int | None = option(3, "checkpoints to keep")
    train_sampling_strategy: str = field(
        default="auto",
        metadata={
            "help": "order of the rows; auto: random when packed, else similar lengths together, which waste the least",
            "choices": ["auto", "random", "sequential", "group_by_length"],
        },
    )
    report_to: str = option("tensorboard", "where the log goes, too: tensorboard, wandb, none")
    logging_nan_inf_filter: bool = option(False, "replace NaN in the logged loss (off: NaN ends the run)")
    remove_unused_columns: bool = option(False, "rows carry what the collator needs")
    ddp_find_unused_parameters: bool | None = option(False, "every adapter weight takes part in every step")

    def __post_init__(self) -> None:
        self.data_path = [word for word in self.data_path if word]
        for name in ("base_model", "data_path", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing; --help lists the options")
        self._check_method()
        for name, least in (("cutoff_len", 2), ("lora_r", 1), ("val_set_size", 0), ("num_train_epochs", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)} is too small; it must be at least {least}")
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        self.gradient_accumulation_steps = accumulation(
            self.batch_size, self.per_device_train_batch_size, self.gradient_accumulation_steps, ranks
        )
        self.batch_size = self.per_device_train_batch_size * self.gradient_accumulation_steps * ranks
        self.accumulation, self.gradient_accumulation_steps = self.gradient_accumulation_steps, 1  # see Steps
        self.lora_target_modules = module_names(self.lora_target_modules)
        self.lora_modules_to_save = module_names(self.lora_modules_to_save) if self.lora_modules_to_save else []
        self.resume_from_checkpoint = {"false": None, "none": None, "": None, "true": "last"}.get(
            str(self.resume_from_checkpoint or "").lower(), self.resume_from_checkpoint
        )
        self._plan_evaluation()
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        self._log_to_wandb()
        meet(self.deepspeed)
        if not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise Trainer runs CPU ranks side by side without averaging their gradients
        super().__post_init__()
        if self.world_size != ranks:
            raise ValueError(f"{ranks} ranks were launched, but Trainer sees {self.world_size}; launch with torchrun")
        if self.device.type == "cpu":
            if self.fp16:
                raise ValueError("--fp16 needs a GPU; leave it out on a CPU (float32), or take --bf16")
            self.dataloader_pin_memory = False
        if self.n_gpu > 1:
            self._n_gpu = 1  # otherwise Trainer would multiply the batch by the GPUs; ranks come from a launcher

    def _check_method(self) -> None:
        if self.method == "qlora":
            self.load_in = self.load_in or "4bit"
        if self.method == "full" and self.load_in:
            raise ValueError(f"--method full cannot train a base in --load_in {self.load_in}; take --method qlora")
        if self.load_in and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(f"--load_in {self.load_in} needs bitsandbytes, which is not installed; pip install it")
        given = json_of(self.deepspeed)
        stage = given.get("zero_optimization", {}).get("stage", 0)
        if stage == 3 and (self.load_in or self.lora_init != "default"):
            what = f"--load_in {self.load_in}" if self.load_in else f"--lora_init {self.lora_init}"
            raise ValueError(f"ZeRO-3 cuts up the weights that {what} needs whole; take ZeRO-2 or no --deepspeed")
        if self.val_set_size and self.eval_data_path:
            raise ValueError("--val_set_size and --eval_data_path both say what is held out; give one of the two")
        if self.eval_generate and not (self.val_set_size or self.eval_data_path):
            raise ValueError("--eval_generate has no rows to answer; give --val_set_size or --eval_data_path")

    def _plan_evaluation(self) -> None:
        """Held-out rows are looked at once an epoch unless told otherwise, and the best checkpoint is the result."""
        if (self.val_set_size or self.eval_data_path) and self.eval_strategy == "no":
            self.eval_strategy = "epoch"
        if self.eval_generate and self.metric_for_best_model is None:
            self.metric_for_best_model = "f1"
        if self.metric_for_best_model is not None and self.eval_strategy != "no":
            self.load_best_model_at_end = True
            self.save_strategy, self.save_steps = self.eval_strategy, self.eval_steps or self.save_steps

    def _log_to_wandb(self) -> None:
        given = {name: getattr(self, f"wandb_{name}") for name in ("project", "watch", "log_model")}
        os.environ.update({f"WANDB_{name.upper()}": value for name, value in given.items() if value})
        self.run_name = self.wandb_run_name or self.run_name
        if self.wandb_project and self.report_to in ("none", "tensorboard"):
            self.report_to = "wandb"
        if "wandb" in (self.report_to or ()) and importlib.util.find_spec("wandb") is None:
            raise ValueError("wandb is not installed; pip install wandb, or leave --wandb_project out")


def json_of(config: Any) -> dict[str, Any]:
    """DeepSpeed's configuration as a dictionary; ValueError where its file is missing or no JSON."""
    if not config or isinstance(config, dict):
        return config or {}
    try:
        return json.loads(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--deepspeed {config} cannot be read ({error}); pretrain/configs has some") from None


def accumulation(batch: int | None, micro: int, given: int, ranks: int) -> int:
    """Micro batches per step, so that micro x ranks x this is the global batch.

    given: --gradient_accumulation_steps, 0 for none. Raises ValueError that proposes numbers which divide.
    """
    if micro < 1 or (batch is not None and batch < 1):
        raise ValueError(f"--batch_size {batch} and --micro_batch_size {micro} must be at least 1")
    together = micro * ranks
    if batch is None:
        batch = given * together if given else max(128 // together, 1) * together
    if batch % together:
        below, above = batch // together * together, -(-batch // together) * together
        sizes = " or ".join(str(size) for size in (below, above) if size)
        dividing = next((size for size in range(micro, 0, -1) if batch % (size * ranks) == 0), 0)
        other = f", or --micro_batch_size {dividing}" if dividing else ""
        raise ValueError(
            f"--batch_size {batch} is not divisible by --micro_batch_size {micro} x {ranks} ranks; "
            f"take --batch_size {sizes}{other}"
        )
    if given and given != batch // together:
        raise ValueError(
            f"--batch_size {batch} is {batch // together} micro batches of {micro} on {ranks} ranks, not the "
            f"{given} of --gradient_accumulation_steps; give one of the two"
        )
    return batch // together


def module_names(given: list[str]) -> list[str]:
    """Names from any published notation: `a b`, `a,b`, `[a,b]`, `['a', 'b']`; ValueError where none is left."""
    words = " ".join(given).replace(",", " ").strip("[]() ").split()
    names = [word.strip("'\"") for word in words]
    if not names:
        raise ValueError("a list of modules is empty; give all-linear or a list such as [q_proj,v_proj]")
    return names


def translate(argv: list[str]) -> tuple[list[str], list[str]]:
    """The command line with options that transformers 5 dropped put into its own words, and one notice for each."""
    result: list[str] = []
    notices: list[str] = []
    index = 0
    while index < len(argv):
        written, joined, value = argv[index].partition("=")
        name = written.removeprefix("--").replace("-", "_")
        index += 1
        if written == "--packing":  # True and False are as good as auto, true and false
            alone = not joined and (index == len(argv) or argv[index].startswith("--"))
            result += [written, "true" if alone else (value if joined else argv[index]).lower()]
            index += not (joined or alone)
            continue
        if not written.startswith("--") or name not in {*RENAMED, *WITHOUT_EFFECT, *SWITCHES, "logging_dir"}:
            result.append(argv[index - 1])
            continue
        given = joined == "=" or (index < len(argv) and not argv[index].startswith("--"))
        if given and not joined:
            value, index = argv[index], index + 1
        if name in WITHOUT_EFFECT:
            notices.append(f"--{name} has no effect: {WITHOUT_EFFECT[name]}")
            continue
        if name == "logging_dir":
            os.environ["TENSORBOARD_LOGGING_DIR"] = value
            notices.append(f"--logging_dir is now the environment variable TENSORBOARD_LOGGING_DIR={value}")
            continue
        if name in SWITCHES:
            target, on, off = SWITCHES[name]
            value = off if value.lower() in ("false", "0", "no") else on
            new = [f"--{target}", value] if value else []
        else:
            new = [f"--{RENAMED[name]}", *([value] if given else [])]
        notices.append(f"--{name} is now {' '.join(new) or 'the default'}")
        result += new
    return result, notices


class _Parser(HfArgumentParser):
    def error(self, message: str) -> Any:  # argparse would print all options and leave
        raise ValueError(f"{message}; --help lists the options")


def parse(argv: list[str], description: str) -> tuple[TuningArguments, list[str]]:
    """Options and notices of a command line; ValueError on what is unknown, abbreviated or out of range."""
    translated, notices = translate(argv)
    options: Any = TuningArguments
    parser = _Parser(options, allow_abbrev=False, description=description, prog="finetune.py")
    namespace, unknown = parser.parse_known_args(translated)
    if unknown:
        known = [f"--{item.name}" for item in fields(TuningArguments)]
        close = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
        raise ValueError(
            f"unknown option {unknown[0]}" + (f"; did you mean {close[0]}?" if close else "; --help lists the options")
        )
    return TuningArguments(**vars(namespace)), notices
