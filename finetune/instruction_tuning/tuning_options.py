"""The options of finetune/finetune.py beside Trainer's, and Trainer's own that have another default or name here."""

from command_line.trainer_options import option

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class TuningOptions:
    """Options of instruction tuning; every other option of Trainer keeps its meaning and default."""

    base_model: str = option("", "folder of the checkpoint to tune")
    data_path: list[str] = field(
        default_factory=list,
        metadata={"help": "JSON, JSONL or parquet files of rows, or folders; name=path names a source"},
    )
    output_dir: str | None = option(None, "folder to write: the adapter or the tuned checkpoint, and checkpoint-*")
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
    report_to: None | str | list[str] = option(  # noqa: RUF036 - HfArgumentParser needs None first
        "tensorboard", "where the log goes, too: tensorboard, wandb, none"
    )
    logging_nan_inf_filter: bool = option(False, "replace NaN in the logged loss (off: NaN ends the run)")
    remove_unused_columns: bool = option(False, "rows carry what the collator needs")
    ddp_find_unused_parameters: bool | None = option(False, "every adapter weight takes part in every step")
