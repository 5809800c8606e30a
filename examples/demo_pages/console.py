"""Terminal demos: run a file of cases, or answer lines typed by the user."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from chat_prompts.prompt_encoding import one_turn
from tqdm import tqdm

from demo_pages import extraction_prompts
from demo_pages.model_loading import Checkpoint
from demo_pages.text_generation import Decoding, GeneratedText, resolve_decoding, stream


def read_cases(name: str) -> dict[str, Any]:
    """Return the suite examples/cases/<name>.json: {"decoding": {…}, "cases": [{…}]}."""
    path = Path(__file__).parent.parent / "cases" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def case_text(case: dict[str, Any], extraction: dict[str, Any]) -> tuple[str, str, bool]:
    """Return (text or instruction, input, whether it is an instruction). extraction: the model's extraction.json."""
    if "task" in case:
        return *extraction_prompts.build(case["task"], case["schema"], case["text"], case["language"], extraction), True
    if "instruction" in case:
        return case["instruction"], case.get("input", ""), True
    return case["text"], "", False


def check_decoding(suite: dict[str, Any], given: Mapping[str, object]) -> Decoding:
    """Merge the suite's decoding settings and the user's options; logs a warning on options without effect."""
    how = resolve_decoding(suite["decoding"], given)
    idle = [name for name in ("temperature", "top_p", "top_k") if name in given]
    if idle and not how.do_sample:
        logging.warning("--%s has no effect without --do_sample", ", --".join(idle))
    return how


def warn_without_template(checkpoint: Checkpoint, folder: str) -> None:
    """Log a warning if the checkpoint has no chat template, since instructions are then continued as plain text."""
    if not checkpoint.encoder.template:
        logging.warning(
            "%s has no chat_template.jinja, so instructions are given as plain text; for a pretrained model use "
            "examples/generate_finetune.py",
            folder,
        )


def run_cases(checkpoint: Checkpoint, suite: dict[str, Any], given: Mapping[str, object]) -> None:
    """Print every case of a suite with the model's answer, which is streamed if num_beams is 1.

    given: the user's decoding options, which take precedence over those of the case and of the suite.
    """
    cases = suite["cases"]
    for number, case in enumerate(tqdm(cases, unit="case", disable=None), 1):
        first, second, is_instruction = case_text(case, checkpoint.extraction)
        print(f"\n[{number}/{len(cases)}] {case.get('group') or '{task} ({language})'.format(**case)}")
        print("\n".join(f"> {line}" for text in (first, second) for line in text.splitlines()))
        how = resolve_decoding(suite["decoding"] | case.get("decoding", {}), given)
        encoder = checkpoint.encoder
        try:
            ids = encoder.prompt(one_turn(first, second)) if is_instruction else encoder.plain(first)
            answer = print_answer(stream(checkpoint, ids, how))
        except ValueError as error:  # for example, the prompt is longer than the model's context
            print(f"  (not answered: {error})")
            continue
        if "task" in case:
            print(
                "  parses as JSON"
                if extraction_prompts.read_answer(answer.text) is not None
                else "  does not parse as JSON"
            )


def print_answer(states: Iterator[GeneratedText]) -> GeneratedText:
    """Print an answer while it is generated, then its length and time; return the finished answer."""
    began, written, answer = time.perf_counter(), "", GeneratedText("", 0, "")
    for answer in states:
        if answer.text.startswith(written):
            print(answer.text[len(written) :], end="", flush=True)
            written = answer.text
    if written != answer.text:  # the finished text differs from the streamed one
        print(f"\n{answer.text}", end="")
    print(f"\n  ({answer.ending}: {answer.new_tokens} tokens in {time.perf_counter() - began:.1f} s)", flush=True)
    return answer


def converse(
    checkpoint: Checkpoint, how: Decoding, questions: tuple[str, ...], make_ids: Callable[..., list[int]]
) -> None:
    """Read one line for each question from the keyboard, print the model's answer, and repeat until the input ends.

    make_ids: function of the prompt encoder and the lines that returns the prompt's ids. Errors are printed.
    """
    print("Enter one line each; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            texts = [input(f"{question}: ") for question in questions]
        except EOFError:
            print()
            return
        if not texts[0].strip():
            continue
        try:
            print_answer(stream(checkpoint, make_ids(checkpoint.encoder, *texts), how))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
