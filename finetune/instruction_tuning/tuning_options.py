"""The options of finetune.py besides Trainer's, and Trainer's options with another default or name."""

from dataclasses import dataclass
from typing import Literal

from training_loop.trainer_options import option


@dataclass
class TuningOptions:
    """Options of instruction tuning; every other option of Trainer keeps its meaning and default."""

    base_model: str = option("", "folder of the checkpoint to tune")
    data_path: list[str] = option(
        [], "JSON, JSONL or parquet files of instruction rows, or folders; name=path names a source"
    )
    output_dir: str | None = option(None, "folder to write: the adapter or the tuned checkpoint, and checkpoint-*")
    mix: str = option("", "proportions of the sources in an epoch: zh=2,en=1; default: each example once")
    eval_data_path: str = option("", "a file of held-out examples, instead of --val_set_size")
    cache_dir: str = option("", "folder of the cache of token ids; default: ~/.cache/knowlm/rows")
    method: Literal["lora", "qlora", "full"] = option("lora", "an adapter, an adapter on a 4-bit base, or all weights")
    prompt_template_name: str = option(
        "",
        "a name in finetune/templates, or the path of a .jinja or alpaca .json file; default: the base's own template, "
        "or alpaca if it has none",
    )
    extraction_path: str = option("", "extraction.json to copy into the result; default: the one beside the data")
    cutoff_len: int = option(512, "maximum tokens of an example; longer ones are dropped and counted")
    truncate_answers: bool = option(False, "truncate examples longer than --cutoff_len instead of dropping them")
    on_error: Literal["stop", "skip"] = option("stop", "rows that cannot be used: stop, or drop and count them")
    train_on_inputs: bool = option(False, "supervise the prompt too, not only the answer")
    val_set_size: float = option(0.0, "examples held out for eval_loss: a count, or a fraction below 1")
    batch_size: int | None = option(
        None,
        "examples per step; default: --gradient_accumulation_steps x micro batch x ranks, or else about 128",
    )
    share_prefixes: bool = option(True, "compute the shared prefix of packed examples once (not with FlashAttention)")
    trust_remote_code: bool = option(False, "execute the Python code in the folder of --base_model")
    attn_implementation: str = option(
        "", "attention of transformers; default: FlashAttention if installed, on a GPU in 16 bits; else sdpa_by_segment"
    )
    load_in: Literal["", "8bit", "4bit"] = option("", "load the frozen base in 8 or 4 bits (bitsandbytes)")
    eval_generate: bool = option(False, "generate answers to the held-out examples at each evaluation, and score them")
    eval_max_new_tokens: int = option(256, "maximum tokens of a generated answer")
    show_rows: bool = option(True, "print three examples as the model reads them, before training")
    lora_r: int = option(16, "rank of the adapter")
    lora_alpha: int = option(32, "the adapter's output is scaled by alpha / r")
    lora_dropout: float = option(0.0, "dropout before the adapter; above 0, prefixes are not shared")
    lora_target_modules: list[str] = option(
        ["all-linear"], "all-linear, or names of modules, separated by spaces or commas: q_proj v_proj"
    )
    lora_modules_to_save: list[str] = option([], "modules trained in full beside the adapter: embed_tokens,lm_head")
    lora_bias: Literal["none", "all", "lora_only"] = option("none", "biases to train")
    lora_init: str = option("default", "initial values of the adapter: default, gaussian, pissa, pissa_niter_16, …")
    use_rslora: bool = option(False, "scale by alpha / sqrt(r) (rank-stabilised)")
    use_dora: bool = option(False, "train magnitude and direction separately (DoRA)")
    loraplus_lr_ratio: float | None = option(None, "learning rate of B / that of A (LoRA+; its authors use 16)")

    # Trainer's options with another default or a second name.
    per_device_train_batch_size: int = option(4, "examples per rank and forward pass", "--micro_batch_size")
    gradient_accumulation_steps: int = option(0, "micro batches per rank and step; 0: computed from --batch_size")
    num_train_epochs: float = option(3.0, "passes over the data", "--num_epochs")
    learning_rate: float = option(3e-4, "peak learning rate")
    warmup_steps: float = option(0.03, "steps of linear warm-up; below 1: a share of all steps")
    logging_steps: float = option(10, "steps between log entries; below 1: a share of all steps")
    logging_first_step: bool = option(True, "log the first step too")
    save_steps: float = option(200, "steps between checkpoints; below 1: a share of all steps")
    save_total_limit: int | None = option(3, "checkpoints to keep")
    train_sampling_strategy: str = option(
        "random", "order of the examples: a new random order for each epoch, or the order of the files",
        choices=["random", "sequential"],
    )  # fmt: skip
    report_to: None | str | list[str] = option(  # noqa: RUF036 - HfArgumentParser needs None first
        "tensorboard", "also log to: tensorboard, wandb, none"
    )
    logging_nan_inf_filter: bool = option(False, "must be False, since a run ends at a non-finite loss")
    remove_unused_columns: bool = option(False, "off, since the items of the data loader have no columns")
    ddp_find_unused_parameters: bool | None = option(False, "off, since all trained weights get gradients in each step")
