"""The offline engine: vLLM in this process's charge, kept full from a stream of rows, asked as the server asks it.

batch.py answers with it. The rows go in one by one, as others end, so no batch has a tail in which the
engine idles; ids, parameters and their errors come from the modules that /generate is made of.
"""

from command_line.command_errors import one_line

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from chat_prompts.template_files import read_template
from launch_vllm import first_look, settle, strict_parser
from pydantic import ValidationError
from routes.generate_api import KNOWN, GenerateRequest
from routes.response_envelope import RequestFailedError, complaint
from routes.sampling_parameters import Parameters, sampling
from routes.served_models import served_models
from server_launch.launch_checks import check_prompt
from vllm_bridge.vllm_imports import part

from batch_runs.batch_rows import Answer, Request, Row, Take, Wait

OPEN_FOR_EACH_PLACE = 2  # rows in the engine for each that it computes at once, so that none of its places waits for us


def engine_settings(model: str, template_path: str, options: Sequence[str]) -> argparse.Namespace:
    """vLLM's settings of the engine, everything checked that can be before it is started.

    options: vLLM's own, as launch_vllm.py takes them, without those of its server. Raises ValueError and
    FileNotFoundError.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    # The engine is killed once all is answered; the tracker that collects its shared memory would tell of it.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    arguments = ["--model", model, *options]
    first_look([*arguments, *(["--template-path", template_path] if template_path else [])])
    part("cli_env_setup")()
    parser = part("EngineArgs").add_cli_args(strict_parser("batch.py … --"))
    parser.add_argument("--lora-modules", nargs="+", action=part("LoRAParserAction"), metavar="NAME=FOLDER")
    parser.set_defaults(disable_log_stats=True)
    args = settle(parser, arguments)
    args.chat_template = read_template(template_path, "--template_path") if template_path else None
    if args.data_parallel_size > 1:
        raise ValueError("--data-parallel-size is for servers; start one and ask it with --url")
    args.use_tqdm_on_load = sys.stderr.isatty()
    part("configure_logging_from_args")(args)
    if Path(args.model).is_dir():
        place = template_path or f"{args.model}/chat_template.jinja"
        check_prompt(args.tokenizer or args.model, args.chat_template, place)
    return args


class OfflineEngine:
    """vLLM's engine with the models that rows can name. As a context, it ends with it."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Load the model; raises ValueError or RuntimeError where vLLM cannot."""
        settings = part("EngineArgs").from_cli_args(args)
        self.engine = part("LLMEngine").from_engine_args(settings, usage_context=part("UsageContext").LLM_CLASS)
        try:
            self.prepare(args)
        except BaseException:
            self.end()
            raise

    def prepare(self, args: argparse.Namespace) -> None:
        """Make ready what the server has ready beside the engine."""
        config = self.engine.vllm_config
        self.open_at_once = OPEN_FOR_EACH_PLACE * config.scheduler_config.max_num_seqs
        self.adapters = self.load_adapters(args.lora_modules or [])
        names = args.served_model_name or [args.model]
        listed = SimpleNamespace(
            base_model_paths=[SimpleNamespace(name=name) for name in names], lora_requests=self.adapters,
            is_base_model=names.__contains__,
        )  # fmt: skip
        self.models = asyncio.run(served_models(self.engine, SimpleNamespace(openai_serving_models=listed), args))
        # What vLLM's server takes from the checkpoint's generation_config.json where a request says nothing.
        model = config.model_config
        self.defaults = model.get_diff_sampling_param()
        from_folder = model.generation_config not in ("auto", "vllm")
        own = self.defaults.get("max_tokens") if from_folder else model.override_generation_config.get("max_new_tokens")
        self.longest_answer: int | None = own

    def load_adapters(self, modules: Sequence[Any]) -> dict[str, Any]:
        """The adapters of --lora-modules, loaded, by name."""
        adapters = {}
        for number, module in enumerate(modules, 1):
            adapter = part("LoRARequest")(lora_name=module.name, lora_int_id=number, lora_path=module.path)
            self.engine.add_lora(adapter)
            adapters[module.name] = adapter
        return adapters

    def begin(self, number: int, body: dict[str, Any]) -> None:
        """Hand a row's request to the engine; raises what the server would answer with an error."""
        request = GenerateRequest.model_validate(body, from_attributes=True)  # as FastAPI does, in whose words
        model = self.models.known(request.model)
        if model is None:
            raise self.models.unknown(request.model or "")
        ids = model.ids_now(request.conversation())
        fields = sampling(request.parameters or Parameters(), model.context - len(ids))
        if "use_beam_search" in fields:
            raise ValueError("beam search needs a server; ask one with --url, or leave num_beams out")
        asked = part("CompletionRequest")(prompt=ids, **model.ending(fields))
        asked.build_tok_params(self.engine.model_config)  # refuses more tokens than the context has
        tokens = part("get_max_tokens")(model.context, asked.max_tokens, len(ids), self.defaults, self.longest_answer)
        how = asked.to_sampling_params(tokens, self.defaults)
        adapter = self.adapters.get(request.model or "")
        self.engine.add_request(str(number), part("tokens_input")(ids), how, lora_request=adapter)

    def step(self) -> list[tuple[int, Answer]]:
        """Let the engine compute once; the rows that are complete with it, by number."""
        complete = []
        for output in self.engine.step():
            if output.finished:
                best = output.outputs[0]
                answer = Answer(best.text, len(best.token_ids), None, len(output.prompt_token_ids))
                if best.finish_reason not in ("stop", "length"):
                    answer = Answer(error=f"the engine gave the answer up ({best.finish_reason}); its log says why")
                complete.append((int(output.request_id), answer))
        return complete

    def answer(self, rows: Iterator[Row], request: Request, take: Take, wait: Wait) -> None:
        """Answer all rows; raises RuntimeError where the engine dies."""
        running: dict[int, Row] = {}
        more = True
        while more or running:
            while more and len(running) < self.open_at_once and not (running and wait()):
                row = next(rows, None)
                if row is None:
                    more = False
                elif row.content is None:
                    take(row, Answer(error=row.error or None))
                else:
                    try:
                        self.begin(row.number, request(row.content))
                        running[row.number] = row
                    except part("EngineDeadError") as error:
                        raise RuntimeError(one_line(error)) from error
                    except Exception as error:
                        take(row, Answer(error=reason(error)))
            if running:
                try:
                    complete = self.step()
                except part("EngineDeadError") as error:
                    raise RuntimeError(one_line(error)) from error
                for number, answer in complete:
                    take(running.pop(number), answer)

    def end(self) -> None:
        """End the engine's processes at once: they have nothing to finish, and are slow to end by themselves."""
        self.engine.engine_core.shutdown(timeout=0)

    def __enter__(self) -> "OfflineEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def reason(error: Exception) -> str:
    """The line that the server would answer a request with that raised this."""
    if isinstance(error, ValidationError):
        return complaint(error.errors(), KNOWN)[0]
    if isinstance(error, RequestFailedError):
        return str(error)
    return " ".join(part("create_error_response")(error).error.message.split())
