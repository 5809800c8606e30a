"""The options that pretrain/train.py adds to those of Trainer, and the options of Trainer whose defaults it changes."""

from dataclasses import dataclass

from training_loop.trainer_options import option

MAX_DEFAULT_BLOCK = 4096  # maximum tokens of a packed sequence if --block_size is not given


@dataclass
class PretrainingOptions:
    """Options of continued pretraining; every other option of Trainer keeps its meaning and default."""

    model_name_or_path: str = option("", "checkpoint folder to continue from")
    data_path: str = option("", "prefix of the corpus: the path without .bin")
    output_dir: str | None = option(None, "folder to write: the trained checkpoint, and checkpoint-*")
    block_size: int = option(0, f"tokens of a packed sequence; 0: the model's context, at most {MAX_DEFAULT_BLOCK}")
    no_packing: bool = option(False, "one sample per sequence, padded to the longest of its micro batch")
    source_weights: str = option(
        "size", 'proportions of the sources, such as zh=0.6,en=0.4 (names or types), "size" or temperature=0.7'
    )
    global_batch_distributed: str = option("", "published form of --source_weights: [424,80], a number for each type")
    eval_fraction: float = option(0.0, "share of each source's documents that is held out for evaluation")
    eval_only: bool = option(False, "measure the held-out loss and perplexity of the model, and train nothing")
    accept_changes: bool = option(False, "resume although corpus, batch, seed or weights changed")
    max_nan_steps: int = option(3, "end the run after this many consecutive steps with a non-finite loss or weight")
    attn_implementation: str = option(
        "",
        "attention backend; empty: flash_attention_2 if it is available, else sdpa_by_segment (sdpa with "
        "--no_packing or --torch_compile)",
    )
    trust_remote_code: bool = option(False, "execute the Python code in the folder of --model_name_or_path")
    peak_tflops: float = option(0.0, "peak TFLOP/s of one GPU, for MFU in the log; 0: the value of a known GPU")

    # Options of Trainer with another default, except save_steps, which is here to be in --help.
    num_train_epochs: float = option(1.0, "passes over the corpus")
    learning_rate: float = option(2e-5, "peak learning rate")
    lr_scheduler_type: str = option("cosine", "learning rate schedule")
    warmup_steps: float = option(0.03, "steps of linear warm-up; below 1: a share of all steps")
    adam_beta2: float = option(0.95, "decay of Adam's second moment")
    weight_decay: float = option(0.1, "decoupled weight decay")
    logging_steps: float = option(10, "steps between log entries; below 1: a share of all steps")
    save_steps: float = option(500, "steps between checkpoints; below 1: a share of all steps")
    save_total_limit: int | None = option(3, "checkpoints to keep")
    logging_nan_inf_filter: bool = option(False, "hide non-finite losses in the log")
    remove_unused_columns: bool = option(False, "off, since the items of the data loader have no columns")
    report_to: None | str | list[str] = option(  # noqa: RUF036 - HfArgumentParser needs None first
        "tensorboard", "also log to: tensorboard, wandb, none"
    )
