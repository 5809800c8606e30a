"""The argparse parsers of the commands whose options are those of Trainer or vLLM."""

import argparse

from server_launch.launch_args import server_parser
from training_loop.trainer_options import _parser


def finetune() -> argparse.ArgumentParser:
    from instruction_tuning.tuning_arguments import TuningArguments

    return _parser(TuningArguments, "", "")


def train() -> argparse.ArgumentParser:
    from pretraining.pretraining_arguments import PretrainingArguments

    return _parser(PretrainingArguments, "", "")


def launch() -> argparse.ArgumentParser:
    return server_parser("")
