"""Every option of every command, with the values that are tried, and the values that a command may accept.

Each run gets valid, tiny inputs, and one option gets one of VALUES. If `is_accepted`, the run may end with exit status
0. Otherwise it must print one error line, exit with status 2 and write no file.
"""

import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

VALUES = [
    "", "base", "empty", "rows.jsonl", "missing/path", "7", "0", "1", "0.5", "-1", "-0.5", "1" + "0" * 30,
    "1e999", "-1e999", "1e30", "nan", "inf", "true", "None", "text", "中文", "é\u0301🙂", "\udcff", "[1,2]", "a,b", "[",
    "a,,b",
    "{}", '{"a": 1}', "x" * 300, "a\nb", "auto", "1,2,3", "٣", "1_0", " 1", "../missing/x", "/dev/null", "/proc/x",
]  # fmt: skip
NO_VALUE = "(no value)"


@dataclass(frozen=True)
class Command:
    """A command and its arguments for a short run. made: the options that name its outputs."""

    script: str
    words: tuple[str, ...]  # the subcommand, if any
    arguments: Mapping[str, str]
    function: str = ""  # module:function whose parameters are the options; for commands that use fire
    made: tuple[str, ...] = ()
    parser: str = ""  # module:function that returns the argparse parser; for the other commands
    other_status: tuple[int, ...] = ()  # permitted exit statuses besides 0 and 2

    @property
    def name(self) -> str:
        return " ".join([self.script, *self.words])

    def options(self) -> dict[str, Any]:
        """Return the type of each option."""
        if self.parser:
            module, _, function = self.parser.partition(":")
            parser = getattr(importlib.import_module(module), function)()
            found: dict[str, Any] = {}
            for action in parser._actions:
                name = next((name for name in action.option_strings if name.startswith("--")), "")
                if name and action.dest != "help":
                    found[name.removeprefix("--")] = argparse_type(action)
            return found
        module, _, function = self.function.partition(":")
        callable = getattr(importlib.import_module(module), function)
        hints = get_type_hints(callable)
        parameters = inspect.signature(callable).parameters.values()
        named = {p.name: hints.get(p.name, str) for p in parameters if p.kind is not p.VAR_KEYWORD}
        if len(named) < len(parameters):
            named |= EXTRA_OPTIONS[self.script.partition("/")[0]]()
        return named

    def words_with(self, option: str, value: str) -> list[str]:
        """Return the command line with one option set to a value."""
        given = [f"--{name}={text}" for name, text in self.arguments.items() if name != option]
        last = f"--{option}" if value == NO_VALUE else f"--{option}={value}"
        return [self.script, *self.words, *given, last]


def argparse_type(action: Any) -> Any:
    if action.choices is not None:
        return Literal[tuple(map(str, action.choices))]
    if action.nargs == 0:
        return bool
    if action.nargs == "?":  # the value may be missing
        return str | bool
    return action.type or str


def decoding_options() -> dict[str, Any]:
    from demo_pages.text_generation import OPTIONS

    return dict(OPTIONS)


def parameter_options() -> dict[str, Any]:
    from routes.sampling_parameters import Parameters

    return dict.fromkeys(Parameters.model_fields, str)


def endpoint_options() -> dict[str, Any]:
    from endpoint_requests.endpoint_option_types import ENDPOINT_OPTION_TYPES

    return dict(ENDPOINT_OPTION_TYPES)


EXTRA_OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "examples": decoding_options, "finetune": endpoint_options, "inference": parameter_options,
}  # fmt: skip
SHORT = {"max_new_tokens": "2"}
TRAINING = {
    "output_dir": "out", "max_steps": "1", "report_to": "none", "learning_rate": "1e-3", "logging_steps": "1",
    "use_cpu": "True",
}  # fmt: skip
MERGE = {"path_zhixi": "base", "path_lora": "adapter", "path_sfted": "out"}
DEMO = {"base_model": "base", "cases": "cases.jsonl", "output": "out", **SHORT}
WRITE = {"mode": "write", "file_path": "texts.jsonl", "save_prefix": "out", "tokenizer_path": "tokenizer"}
ROWS = "rows.jsonl"


def parsed(script: str, parser: str, arguments: Mapping[str, str], *made: str) -> Command:
    return Command(script, (), arguments, made=made, parser=parser)


def called(script: str, words: str, function: str, arguments: Mapping[str, str], *made: str, other: int = 0) -> Command:
    return Command(script, tuple(words.split()), arguments, function, made, other_status=(other,) if other else ())


COMMANDS = [
    called("tools/build_tokenizer.py", "", "build_tokenizer:main",
           {"tokenizer_model": "tokenizer/tokenizer.model", "output_dir": "out"}, "output_dir"),
    called("tools/checkpoint.py", "seal", "checkpoint:seal", {"folder": "tuned", "parents": "base"}),
    called("tools/checkpoint.py", "verify", "checkpoint:verify", {"folder": "sealed"}),
    called("tools/checkpoint.py", "show", "checkpoint:show", {"folder": "base"}),
    called("tools/checkpoint.py", "compare", "checkpoint:compare", {"first": "base", "second": "base"}, other=1),
    called("tools/checkpoint.py", "memory", "checkpoint:memory", {"folder": "base", "gpu_memory": "24"}),
    called("tools/convert_llama.py", "", "convert_llama:main",
           {"input_dir": "original", "model_size": "auto", "output_dir": "out"}, "output_dir"),
    called("tools/download.py", "", "download:main",
           {"download_path": "out", "specify": "True", "repo_name": "some/thing", "endpoint": "http://127.0.0.1:9"},
           "download_path"),
    called("tools/edit_knowledge.py", "apply", "edit_knowledge:apply",
           {"base": "base", "edits": "edits.jsonl", "out": "out"}, "out", "patch_only"),
    called("tools/edit_knowledge.py", "remove", "edit_knowledge:remove",
           {"base": "base", "patch": "facts", "out": "out"}, "out"),
    called("tools/edit_knowledge.py", "list", "edit_knowledge:show", {"path": "base"}),
    called("tools/edit_knowledge.py", "stats", "edit_knowledge:stats", {"base": "base", "text": "texts.jsonl"}),
    called("tools/edit_score.py", "", "edit_score:main",
           {"base": "base", "edited": "base", "edits": "edits.jsonl", "output": "out"}, "output", "picture"),
    called("tools/export_gguf.py", "", "export_gguf:main", {"model_path": "base", "output_file": "out.gguf"},
           "output_file"),
    called("tools/export_hf_checkpoint.py", "", "export_hf_checkpoint:main",
           {"base_model": "base", "lora_model": "adapter", "output_dir": "out"}, "output_dir"),
    called("tools/import_gguf.py", "", "import_gguf:main", {"gguf": "model.gguf", "output": "out"}, "output"),
    called("tools/quantize.py", "", "quantize:main",
           {"model_path": "base", "output_dir": "out", "method": "gptq", "data_path": "texts.jsonl"}, "output_dir"),
    called("tools/set_template.py", "", "set_template:main",
           {"model_path": "base", "template_path": "alpaca.jinja", "output_dir": "out"}, "output_dir"),
    called("tools/weight_diff.py", "make_diff", "weight_diff:make_diff",
           {"path_raw": "base", "path_tuned": "tuned", "path_diff": "out"}, "path_diff"),
    called("tools/weight_diff.py", "recover", "weight_diff:recover",
           {"path_raw": "base", "path_diff": "diff", "path_tuned": "out"}, "path_tuned"),
    called("tools/weight_diff.py", "inspect", "weight_diff:inspect", {"path_diff": "diff"}),
    called("tools/weight_diff.py", "merge", "weight_diff:merge", MERGE, "path_sfted"),
    called("finetune/ie_build.py", "", "ie_build:main",
           {"input": "annotations.jsonl", "output": "out"}, "output", "requests"),
    called("finetune/ie_eval.py", "", "ie_eval:main", {"predictions": "predictions.jsonl", "output": "out"}, "output",
           "errors", "confusion_picture"),
    called("finetune/ie_run.py", "", "ie_run:main",
           {"base_model": "chat", "data_path": ROWS, "output": "out", "max_new_tokens": "2"}, "output"),
    called("finetune/instruct_generate.py", "", "instruct_generate:main",
           {"method": "self_instruct", "url": "http://127.0.0.1:9", "model": "m", "output": "out", "attempts": "1"},
           "output"),
    called("finetune/instruct_select.py", "", "instruct_select:main", {"data_path": ROWS, "output": "out"}, "output"),
    parsed("finetune/finetune.py", "option_parsers:finetune",
           TRAINING | {"base_model": "base", "data_path": ROWS, "batch_size": "2", "micro_batch_size": "1"},
           "output_dir"),
    parsed("pretrain/clean.py", "clean:parser", {"file_path": "texts.jsonl", "output_dir": "out"}, "output_dir"),
    parsed("pretrain/plan.py", "plan:make_parser", {"model": "base", "gpus": "8", "gpu_memory": "24"}),
    parsed("pretrain/preprocess.py", "preprocess:parser", WRITE, "save_prefix"),
    parsed("pretrain/preprocess.py", "preprocess:parser",
           {"mode": "merge", "merge_path_prefix": "corpus/en,corpus/zh", "new_path_prefix": "out"},
           "new_path_prefix"),
    parsed("pretrain/preprocess.py", "preprocess:parser", {"mode": "read", "read_path_prefix": "corpus/en"}),
    parsed("pretrain/preprocess.py", "preprocess:parser", {"mode": "verify", "read_path_prefix": "corpus/en"}),
    parsed("pretrain/preprocess.py", "preprocess:parser",
           {"mode": "prune", "read_path_prefix": "corpus/en", "sample_ids": "ids.txt", "new_path_prefix": "out"},
           "new_path_prefix"),
    parsed("pretrain/preprocess.py", "preprocess:parser",
           {"mode": "import", "read_path_prefix": "corpus/en", "tokenizer_path": "tokenizer",
            "new_path_prefix": "out"},
           "new_path_prefix"),
    parsed("pretrain/train.py", "option_parsers:train",
           TRAINING | {"model_name_or_path": "base", "data_path": "corpus/en", "block_size": "128"}, "output_dir"),
    called("examples/generate_finetune.py", "", "generate_finetune:main", DEMO, "output"),
    called("examples/generate_finetune_web.py", "", "generate_finetune_web:main", {"base_model": "base", **SHORT}),
    called("examples/generate_lora.py", "", "generate_lora:main", DEMO | {"lora_weights": "adapter"}, "output"),
    called("examples/generate_lora_web.py", "", "generate_lora_web:main", {"base_model": "chat", **SHORT}),
    called("examples/ie_prompt.py", "", "ie_prompt:main",
           {"task": "ner", "text": "Ann Lee was born in Oslo.", "schema": "person"}),
    called("examples/make_demo.py", "world", "make_demo:make_world",
           {"output_dir": "out", "people": "8", "documents_per_language": "4", "rows": "4", "heldout_rows": "2",
            "real_megabytes": "0.01"}, "output_dir"),
    called("examples/make_demo.py", "tokenizer", "make_demo:train_tokenizer",
           {"input": "texts.jsonl", "output_dir": "out", "vocab_size": "400"}, "output_dir"),
    called("examples/make_demo.py", "model", "make_demo:make_model",
           {"tokenizer_path": "tokenizer", "output_dir": "out", "hidden_size": "32", "num_hidden_layers": "1",
            "num_attention_heads": "1", "intermediate_size": "32"}, "output_dir"),
    called("examples/make_demo.py", "summary", "make_demo:summarize", {"folder": "base"}),
    called("examples/make_demo.py", "facts", "make_demo:write_fact_questions",
           {"facts_path": "base", "output": "out", "number": "2"}, "output"),
    called("examples/make_demo.py", "rehearsal", "make_demo:write_rehearsal_rows",
           {"answers": "rows.jsonl", "output": "out", "copies": "2"}, "output"),
    called("examples/make_demo.py", "steps", "make_demo:steps_within",
           {"train_log": "rows.jsonl", "seconds": "60"}),
    called("examples/make_demo.py", "real_summary", "make_demo:summarize_real_model", {"folder": "base"}),
    called("inference/batch.py", "", "batch:main",
           {"input": ROWS, "output": "out", "url": "http://127.0.0.1:9"}, "output"),
    parsed("inference/launch_vllm.py", "option_parsers:launch", {"model": "chat", "port": "0"}),
]  # fmt: skip


# The values that may be accepted. These rules are independent of the commands' own rules, which are under test.
WHOLE, NUMBER = re.compile(r"[+-]?[0-9]{1,18}"), re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
YES_OR_NO = ("true", "false")
MORE_YES_OR_NO = (*YES_OR_NO, "yes", "no", "t", "f", "y", "n", "1", "0")  # for Trainer's options
# Options whose numbers may be negative.
NEGATIVE = ("max_steps", "local_rank", "top_k", "port", "seed", "max-logprobs", "weights")
INPUTS = ("", "auto", "base", "empty", "rows.jsonl")  # texts that may name an input or select the default
# Options that take any text, besides those that name an output.
FREE_TEXT = (
    "save_path", "slurm_partition", "slurm_time", "slurm_option", "ray_address", "stop", "bad_words", "api_key", "url",
    "model", "text", "schema",
)  # fmt: skip
BATCH_OPTIONS = (
    "input", "output", "model", "url", "template_path", "concurrency", "api_key", "overwrite", "engine",
)  # fmt: skip
LIBRARY_OPTIONS = ("finetune/finetune.py", "pretrain/train.py", "inference/launch_vllm.py")  # many take any text


def is_parsed(kind: Any, value: str) -> bool:
    """Return whether the text of an option has the option's type."""
    if get_origin(kind) in (Union, UnionType):
        kinds = [one for one in get_args(kind) if one is not NoneType]
        optional = value == "None" and str not in kinds and NoneType in get_args(kind)
        return optional or any(is_parsed(one, value) for one in kinds)
    name = getattr(kind, "__qualname__", "")
    if isinstance(kind, partial):
        if kind.func.__name__ == "optional_number" and value in ("", "None"):
            return True
        kind = kind.args[0]
    if value == NO_VALUE:
        return kind is bool or name == "string_to_bool"
    if kind is bool or name == "string_to_bool":
        return value.lower() in (YES_OR_NO if kind is bool else MORE_YES_OR_NO)
    if get_origin(kind) is Literal or name == "filter_names":
        return value in get_args(kind)
    if kind is int or name.startswith("at_least"):
        return WHOLE.fullmatch(value) is not None and (kind is int or int(value) >= 0)
    if kind is float or name == "gib":
        return (
            NUMBER.fullmatch(value) is not None and math.isfinite(float(value)) and (kind is float or float(value) > 0)
        )
    if get_origin(kind) in (list, tuple) and get_args(kind)[0] in (int, float):
        items = value.strip("[]()").split(",")
        return value == "" or all(is_parsed(get_args(kind)[0], item.strip()) for item in items)
    return True


def is_accepted(command: Command, option: str, kind: Any, value: str) -> bool:
    """Return whether a command may end with status 0 if the option has this value."""
    if command.script == "inference/batch.py" and option not in BATCH_OPTIONS:
        return True  # a parameter of /generate, which the server checks
    if not is_parsed(kind, value):
        return False
    if is_number(kind):
        return not NUMBER.fullmatch(value) or float(value) >= 0 or option in NEGATIVE
    if option == "server_name" and value == "0":  # the address 0.0.0.0
        return True
    is_text = kind is str or str in get_args(kind)
    is_unused = command.script == "pretrain/preprocess.py" and option not in command.arguments  # by this mode
    if not is_text or is_unused or command.script in LIBRARY_OPTIONS or option in (*command.made, *FREE_TEXT):
        return True
    if option == "max_shard_size" and re.fullmatch(r"[1-9][0-9]*", value):
        return True
    if option == "llama_version" and value == "1":
        return True
    return value in INPUTS or value == command.arguments.get(option)


def is_number(kind: Any) -> bool:
    return kind in (int, float) or isinstance(kind, partial) or any(map(is_number, get_args(kind)))
