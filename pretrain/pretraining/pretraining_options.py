"""The options of pretrain/train.py beside Trainer's, and Trainer's own that have another default here."""

from command_line.trainer_options import option

from dataclasses import dataclass


@dataclass
class PretrainingOptions:
    """Options of continued pretraining; every other option of Trainer keeps its meaning and default."""

    model_name_or_path: str = option("", "checkpoint folder to continue from")
    data_path: str = option("", "prefix of the corpus: the path without .bin")
    output_dir: str | None = option(None, "folder to write: the trained checkpoint, and checkpoint-*")
    block_size: int = option(0, "tokens of a row; 0: the model's context, at most 4096")
    no_packing: bool = option(False, "one sample a row, padded to the longest of its micro batch")
    source_weights: str = option("size", 'shares of the rows: zh=0.6,en=0.4 (names or types), "size", temperature=0.7')
    global_batch_distributed: str = option("", "the older way to say it: [424,80], rows of each type in proportion")
    eval_fraction: float = option(0.0, "share of each source's documents that is held out for evaluation")
    accept_changes: bool = option(False, "resume though corpus, batch, seed or weights are not those of the checkpoint")
    max_nan_steps: int = option(3, "end the run after so many steps in a row whose loss is no number")
    attn_implementation: str = option(
        "", "attention backend; empty: flash_attention_2 if it is installed, else by sample"
    )
    peak_tflops: float = option(0.0, "of one GPU, for MFU in the log; 0: what is known of it")

    # Trainer's own, with defaults that suit the job.
    num_train_epochs: float = option(1.0, "passes over the corpus")
    learning_rate: float = option(2e-5, "peak learning rate")
    lr_scheduler_type: str = option("cosine", "shape of the learning rate over the run")
    warmup_steps: float = option(0.03, "steps of linear warm-up; below 1: a share of all steps")
    adam_beta2: float = option(0.95, "decay of Adam's second moment")
    weight_decay: float = option(0.1, "decoupled weight decay")
    logging_steps: float = option(10, "log every so many steps; below 1: a share of all steps")
    save_steps: float = option(500, "keep a checkpoint to resume from every so many steps; below 1: a share")
    save_total_limit: int | None = option(3, "checkpoints to keep")
    logging_nan_inf_filter: bool = option(False, "replace NaN in the logged loss (off: NaN ends the run)")
    remove_unused_columns: bool = option(False, "samples hold what the model needs and nothing else")
    report_to: None | str | list[str] = option(  # noqa: RUF036 - HfArgumentParser needs None first
        "tensorboard", "where the log goes, too: tensorboard, wandb, none"
    )
