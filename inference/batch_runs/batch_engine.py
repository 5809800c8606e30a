"""Offline engine: vLLM in processes of batch.py, fed continuously from a stream of rows.

A row is added as soon as another one finishes. Chunks of rows would let the engine idle at the end of each chunk. Token
ids, sampling parameters and their errors come from the modules of /generate.
"""

from command_line.command_errors import one_line

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from chat_prompts.template_files import read_template
from pydantic import ValidationError
from routes.generate_api import REQUEST_MODELS, GenerateRequest
from routes.response_envelope import RequestFailedError, validation_message
from routes.sampling_parameters import Parameters, completion_fields
from routes.served_models import served_models
from server_launch.launch_adapters import check_prompts
from server_launch.launch_args import finalize_args, note, precheck, strict_parser
from vllm_bridge.vllm_hooks import stop_engine
from vllm_bridge.vllm_imports import from_vllm

from batch_runs.batch_file import BatchProgress
from batch_runs.batch_rows import BatchRow, RowAnswer

ROWS_PER_SEQUENCE = 2  # rows in the engine per concurrent sequence (--max-num-seqs), so that it never waits for rows


def engine_args(model: str, template_path: str, options: Sequence[str]) -> argparse.Namespace:
    """Parse and check vLLM's engine options and fill in the presets, without starting the engine.

    options: vLLM's engine options, as launch_vllm.py takes them. Raises ValueError or FileNotFoundError.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    # The engine is killed after the last answer; multiprocessing's resource tracker would warn about its shared memory.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    arguments = ["--model", model, *options]
    precheck([*arguments, *(["--template-path", template_path] if template_path else [])])
    from_vllm("cli_env_setup")()
    parser = from_vllm("EngineArgs").add_cli_args(strict_parser("batch.py … --"))
    parser.add_argument("--lora-modules", nargs="+", action=from_vllm("LoRAParserAction"), metavar="NAME=FOLDER")
    parser.set_defaults(disable_log_stats=True)
    args = finalize_args(parser, arguments)
    args.template_path = template_path
    args.chat_template = read_template(template_path, "--template_path") if template_path else None
    if args.data_parallel_size > 1:
        raise ValueError("--data-parallel-size is for servers; start a server and give its --url")
    args.use_tqdm_on_load = sys.stderr.isatty()
    from_vllm("configure_logging_from_args")(args)
    for line in check_prompts(args):
        note(line)
    return args


class OfflineEngine:
    """vLLM's engine and the models that rows can name. A context manager that stops the engine on exit."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Load the model; raises ValueError or RuntimeError if vLLM cannot load it."""
        settings = from_vllm("EngineArgs").from_cli_args(args)
        usage = from_vllm("UsageContext").LLM_CLASS
        self.engine = from_vllm("LLMEngine").from_engine_args(settings, usage_context=usage)
        try:
            self.load_models(args)
        except BaseException:
            stop_engine(self.engine)
            raise

    def load_models(self, args: argparse.Namespace) -> None:
        """Load the adapters, and read the same files and defaults from the checkpoint folder as the server does."""
        config = self.engine.vllm_config
        self.max_rows = ROWS_PER_SEQUENCE * config.scheduler_config.max_num_seqs
        self.adapters = self.load_adapters(args.lora_modules or [])
        names = args.served_model_name or [args.model]
        registry = SimpleNamespace(
            base_model_paths=[SimpleNamespace(name=name) for name in names], lora_requests=self.adapters,
            is_base_model=names.__contains__,
        )  # fmt: skip
        self.models = served_models(self.engine, SimpleNamespace(openai_serving_models=registry), args)
        # Defaults of generation_config.json, as vLLM's server applies them.
        model = config.model_config
        self.defaults = model.get_diff_sampling_param()
        is_folder = model.generation_config not in ("auto", "vllm")
        limit = self.defaults.get("max_tokens") if is_folder else model.override_generation_config.get("max_new_tokens")
        self.default_max_tokens: int | None = limit

    def load_adapters(self, modules: Sequence[Any]) -> dict[str, Any]:
        """Load the adapters of --lora-modules; return adapter name -> vLLM's LoRARequest."""
        adapters = {}
        for number, module in enumerate(modules, 1):
            adapter = from_vllm("LoRARequest")(lora_name=module.name, lora_int_id=number, lora_path=module.path)
            self.engine.add_lora(adapter)
            adapters[module.name] = adapter
        return adapters

    def add_row(self, row: BatchRow) -> None:
        """Add a row's request to the engine; raises the errors that /generate raises for its body."""
        request = GenerateRequest.model_validate(
            row.request, from_attributes=True
        )  # FastAPI's call, for the same messages
        model = self.models.get(request.model)
        ids = model.encode(request.conversation())
        fields = completion_fields(request.parameters or Parameters(), model.context - len(ids))
        if "use_beam_search" in fields:
            raise ValueError("beam search needs a server; give its --url, or remove num_beams")
        completion = from_vllm("CompletionRequest")(prompt=ids, **model.with_end_ids(fields))
        completion.build_tok_params(self.engine.model_config)  # raises if prompt and answer exceed the context
        max_tokens = from_vllm("get_max_tokens")(
            model.context, completion.max_tokens, len(ids), self.defaults, self.default_max_tokens
        )
        sampling = completion.to_sampling_params(max_tokens, self.defaults)
        adapter = self.adapters.get(request.model or "")
        self.engine.add_request(str(row.number), from_vllm("tokens_input")(ids), sampling, lora_request=adapter)

    def try_to_add(self, row: BatchRow) -> str:
        """Add a row; return "", or the error message that the server would send for its request.

        Raises vLLM's EngineDeadError.
        """
        try:
            self.add_row(row)
        except from_vllm("EngineDeadError"):
            raise
        except ValidationError as error:
            return validation_message(error.errors(), REQUEST_MODELS)[0]
        except RequestFailedError as error:
            return str(error)
        except Exception as error:
            return " ".join(from_vllm("create_error_response")(error).error.message.split())
        return ""

    def step(self) -> list[tuple[int, RowAnswer]]:
        """Run one step of the engine; return (row number, answer) for each answer that it completes."""
        answers = []
        for output in self.engine.step():
            if output.finished:
                best = output.outputs[0]
                answer = RowAnswer(best.text, len(best.token_ids), None, len(output.prompt_token_ids))
                if best.finish_reason not in ("stop", "length"):
                    answer = RowAnswer(error=f"the engine gave up the answer ({best.finish_reason}); see its log")
                answers.append((int(output.request_id), answer))
        return answers

    def answer(self, rows: Iterator[BatchRow], progress: BatchProgress) -> None:
        """Answer all rows and write the answers; raises RuntimeError if the engine dies."""
        running: dict[int, BatchRow] = {}
        more = True
        try:
            while more or running:
                while more and len(running) < self.max_rows and not (running and progress.file.is_full()):
                    row = next(rows, None)
                    if row is None:
                        more = False
                    elif row.request is None:
                        progress.write(row, RowAnswer(error=row.error or None))
                    elif error := self.try_to_add(row):
                        progress.write(row, RowAnswer(error=error))
                    else:
                        running[row.number] = row
                for number, answer in self.step() if running else ():
                    progress.write(running.pop(number), answer)
        except from_vllm("EngineDeadError") as error:
            raise RuntimeError(one_line(error)) from error

    def __enter__(self) -> "OfflineEngine":
        return self

    def __exit__(self, *_: object) -> None:
        stop_engine(self.engine)
