"""Commands of the published documents: every option is accepted, in the folder that the documents name."""

from pathlib import Path

import pytest
from conftest import RunScript
from corpus_files.corpus import Corpus
from instruction_data.named_templates import load_template
from instruction_tuning.tuning_arguments import parse
from pretraining import pretraining_arguments

# (working folder, command, error): commands of README.md of July 2023 and of 2025 and of inference/README_EN.md. The
# only error is that an input is missing or cannot be downloaded.
COMMANDS = [
    ("", "tools/weight_diff.py recover --path_raw ./converted --path_diff ./zhixi-diff --path_tuned ./zhixi", "./conv"),
    (
        "",
        "tools/weight_diff.py recover --path_raw ./converted --path_diff ./zhixi-diff-fp16 --path_tuned ./zhixi "
        "--is_fp16 True",
        "./converted is not a folder",
    ),
    (
        "tools",
        "weight_diff.py merge --path_zhixi ./zhixi --path_lora ./zhixi-lora --path_sfted ./zhixi-sft",
        "./zhixi is not a folder",
    ),
    (
        "",
        "tools/export_hf_checkpoint.py --base_model ./data/zhixi-13b --lora_model data/zhixi-13b-lora "
        "--output_dir data/zhixi-13b-merged",
        "./data/zhixi-13b is not a folder",
    ),
    ("", "tools/download.py --download_path ./zhixi-diff-fp16 --only_base --fp16", "HF_HUB_OFFLINE is set"),
    ("", "tools/download.py --download_path ./lora --only_lora", "HF_HUB_OFFLINE is set"),
    (
        "",
        "tools/download.py --specify --download_path ./your/path --repo_name zjunlp/knowlm-13b-zhixi",
        "HF_HUB_OFFLINE is set",
    ),
    ("", "examples/generate_finetune.py --base_model ./zhixi --interactive", "./zhixi is not a folder"),
    (
        "",
        "examples/generate_lora.py --load_8bit --base_model ./zhixi --lora_weights ./lora --run_ie_cases",
        "./zhixi is not a folder",
    ),
    (
        "",
        "examples/generate_finetune_web.py --base_model zjunlp/knowlm-13b-base-v1.0 --multi_gpu --allocate [10,10,10]",
        "zjunlp/knowlm-13b-base-v1.0 is not a folder, and HF_HUB_OFFLINE is set",
    ),
    (
        "",
        "inference/launch_vllm.py --port 8090 --model ./data/zhixi-13B --use-np-weights --max-num-batched-tokens 8000 "
        "--dtype half --tensor-parallel-size 2",
        "./data/zhixi-13B",
    ),
]


@pytest.mark.parametrize(("folder", "command", "refused"), COMMANDS, ids=lambda value: value.partition(" --")[0])
@pytest.mark.integration
def test_options_of_published_command_are_accepted(
    repository: Path, tmp_path: Path, run_script: RunScript, folder: str, command: str, refused: str
) -> None:
    script, *arguments = command.split()
    environment = {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": tmp_path}
    done = run_script(Path(folder, script).as_posix(), *arguments, status=2, cwd=repository / folder, env=environment)
    assert refused in done.stderr.splitlines()[-1]
    assert not (repository / folder / "zhixi").exists()


# pretrain/README.md of 2023, without --deepspeed and --fp16, which need a launcher and a GPU
PRETRAINING = (
    "--model_name_or_path m --model_max_length 1024 --data_path d --output_dir o --num_train_epochs 1 "
    "--per_device_train_batch_size 16 --per_device_eval_batch_size 1 --evaluation_strategy no --save_strategy steps "
    "--save_steps 100 --save_total_limit 1 --learning_rate 1.5e-5 --warmup_steps 300 --logging_steps 1 "
    "--report_to tensorboard --gradient_checkpointing True --log_on_each_node False --lr_scheduler_type cosine "
    "--adam_beta1 0.9 --adam_beta2 0.95 --weight_decay 0.1"
)


def test_options_of_published_pretraining_are_accepted() -> None:
    for more in ("", "--global_batch_distributed [64,64] --gradient_accumulation_steps 3"):
        args, notices = pretraining_arguments.parse(f"{PRETRAINING} {more}".split(), "")
        assert (args.block_size, args.eval_strategy) == (1024, "no")
        assert notices[-1].startswith("--per_device_eval_batch_size has no effect without held-out data")


def test_published_options_of_weights_and_biases_give_notices_or_an_error() -> None:
    """Published commands give the options of Weights & Biases, even empty ones, without reporting to it."""
    needed = ["--base_model", "b", "--data_path", "d", "--output_dir", "o"]
    for name in ("knowlm", ""):
        _, notices = parse([*needed, "--wandb_project", "p", "--wandb_run_name", name], "")
        assert [notice.split()[0] for notice in notices] == ["--wandb_project", "--wandb_run_name"]
    with pytest.raises(ValueError, match="--run_name has no effect without --report_to wandb"):
        parse([*needed, "--wandb_run_name", "knowlm", "--report_to", "none"], "")


def test_tuning_without_output_folder_writes_to_the_published_one(tmp_path: Path) -> None:
    args, notices = parse(["--base_model", "b", "--data_path", "d"], "")
    assert args.output_dir == "checkpoint"
    assert notices == ["--output_dir is not given; the result is written to checkpoint"]
    for option in ("--output_dir=o", "--output-dir=o"):
        args, notices = parse(["--base_model", "b", "--data_path", "d", option], "")
        assert (args.output_dir, notices) == ("o", [])


def test_published_options_of_evaluation_without_held_out_data_give_notices(tmp_path: Path) -> None:
    """The published commands give --per_device_eval_batch_size (pretrain/README.md) or --eval_steps (lora/Others)."""
    shared = [
        "--save_steps",
        "100",
        "--evaluation_strategy",
        "no",
        "--per_device_eval_batch_size",
        "1",
        "--eval_steps",
        "50",
        "--output_dir",
    ]
    tuned = parse(["--base_model", "b", "--data_path", "d", *shared, str(tmp_path)], "")
    pretrained = pretraining_arguments.parse(
        ["--model_name_or_path", "b", "--data_path", "d", *shared, str(tmp_path)], ""
    )
    for (args, notices), data in ((tuned, "--val_set_size or --eval_data_path"), (pretrained, "--eval_fraction")):
        assert args.eval_strategy == "no"
        reason = f"has no effect without held-out data; give {data} to evaluate"
        assert sorted(notices) == [
            f"--eval_steps {reason}", "--evaluation_strategy is now --eval_strategy no",
            f"--per_device_eval_batch_size {reason}",
        ]  # fmt: skip


def test_published_templates_of_other_bases_have_the_prompts_of_alpaca() -> None:
    assert load_template("qwen") == load_template("chatglm3") == load_template("alpaca")


@pytest.mark.integration
def test_corpus_is_written_with_tokenizer_model_of_current_folder(
    tiny_tokenizer: Path, tmp_path: Path, run_script: RunScript
) -> None:
    """Run the published commands of pretrain/README.md: write, which names no tokenizer, merge and read."""
    (tmp_path / "data").mkdir()
    (tmp_path / "tokenizer.model").write_bytes((tiny_tokenizer / "tokenizer.model").read_bytes())
    for name in ("dataset1", "dataset2"):
        (tmp_path / f"data/{name}.txt").write_text("Ann was born in Oslo.\nBo was born in Rome.\n")
        done = run_script(
            "pretrain/preprocess.py", "--mode=write", f"--file_path=./data/{name}.txt", f"--save_prefix={name}",
            "--save_path=./data/", "--language", "english", "--do_split_sentences", "--do_keep_newlines",
            "--seq_length", 1024, "--num_workers", 2, cwd=tmp_path,
        )  # fmt: skip
        assert "notice: --tokenizer_path is not given; tokenizer.model in this folder is used" in done.stderr
    run_script(
        "pretrain/preprocess.py", "--mode=merge", "--merge_path_prefix=['data/dataset1', 'data/dataset2']",
        "--merge_path_type=[0,1]", "--new_path_prefix=./data/data", cwd=tmp_path,
    )  # fmt: skip
    assert len(Corpus(tmp_path / "data/data")) == 4
    done = run_script("pretrain/preprocess.py", "--mode=read", "--read_path_prefix=./data/data", cwd=tmp_path)
    assert "Ann was born in Oslo." in done.stdout
